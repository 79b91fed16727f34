"""What an optimizer may move: `Isolation` holds the units that nobody taught, and clipping goes by route."""

from ._clipping import clip_grad_norm_per_route_
from ._isolation import Isolation

__all__ = ["Isolation", "clip_grad_norm_per_route_"]
