"""Which label may teach which units: pure data, no model and no autograd."""

from ._masks import UNLABELED
from ._route import Route
from ._spec import RoutingSpec

__all__ = ["UNLABELED", "Route", "RoutingSpec"]
