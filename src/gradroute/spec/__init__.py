"""Which label may teach which units: pure data, no model and no autograd."""

from ._checks import UNTAUGHT
from ._masks import UNLABELED
from ._route import Route
from ._spec import RoutingSpec

__all__ = ["UNLABELED", "UNTAUGHT", "Route", "RoutingSpec"]
