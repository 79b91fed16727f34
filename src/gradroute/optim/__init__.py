"""What an optimizer may move: `Isolation` holds what nobody taught, `Hold` what is named; clipping goes by route."""

from ._hold import Hold
from ._isolation import Isolation, clip_grad_norm_per_route_

__all__ = ["Hold", "Isolation", "clip_grad_norm_per_route_"]
