"""Gradients times masks: the autograd Functions, `route` and `RouteGradient`."""

from ._functional import route
from ._functions import RouteMask
from ._module import RouteGradient

__all__ = ["RouteGradient", "RouteMask", "route"]
