"""Sites on a model: the hooks, the labels in flight, and the guards that no mask is lost."""

from ._routed_module import RoutedModule
from ._router import Router
from ._site import Site

__all__ = ["RoutedModule", "Router", "Site"]
