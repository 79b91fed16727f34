"""Gradients that come to a site's tensors, to be noticed in the backward pass: whether a pass learns is known there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from ... import _torch_private as private
from .._nested import tensors_of


def when_gradients_come(tensors: Any, function: Callable[[Tensor], None]) -> None:
    """Call a function with the gradient of each of these tensors, nested as they may be, that gets one."""
    for x in tensors_of(tensors):
        if x.requires_grad:
            # On what it is a view of: an operation in place on a view takes its hooks out of the graph.
            base = private.base(x)
            (base if base is not None and base.requires_grad else x).register_hook(function)  # type: ignore[no-untyped-call]
