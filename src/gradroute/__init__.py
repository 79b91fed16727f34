"""Gradient routing for PyTorch: decide, example by example, which part of a network a loss may teach."""

from .audit import audit
from .errors import RoutingError, UnroutedWarning
from .functional import RouteMask, route
from .layers import RouteGradient
from .masks import UNLABELED
from .router import RoutedModule, Router
from .routes import Route
from .sites import Site
from .spec import RoutingSpec
from .specialization import specialization
from .watch import watch

__version__ = "0.1.0"
__all__ = [
    "UNLABELED",
    "Route",
    "RouteGradient",
    "RouteMask",
    "RoutedModule",
    "Router",
    "RoutingError",
    "RoutingSpec",
    "Site",
    "UnroutedWarning",
    "audit",
    "route",
    "specialization",
    "watch",
]
