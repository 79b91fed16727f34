"""Gradient routing for PyTorch: decide, example by example, which part of a network a loss may teach."""

import importlib
from typing import Any

from .autograd import RouteGradient, RouteMask, route
from .diagnostics._specialization import specialization
from .diagnostics._watch import watch
from .diagnostics.audit import audit
from .errors import LabelWarning, RoutingError, UnroutedWarning
from .router import RoutedModule, Router, Site
from .spec import UNLABELED, UNTAUGHT, Route, RoutingSpec

__version__ = "0.1.0"
__all__ = [
    "UNLABELED",
    "UNTAUGHT",
    "LabelWarning",
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

#: The modules with more public names, which are attributes of this one without an import of their own.
_MODULES = ("blocks", "diagnostics", "errors", "optim", "surgery", "testing", "trainers")


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """What a user looks for: the public names, and not the modules that were imported on the way."""
    dunders = [name for name in globals() if name.startswith("__") and name.endswith("__")]
    return sorted({*__all__, *_MODULES, *dunders})
