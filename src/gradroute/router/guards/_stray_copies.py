"""A copied model carries copies of the hooks; if the router was not copied with it, no labels ever reach them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ...errors import UsageError
from .._attachment import Hook
from ._gradients import when_gradients_come


def refuse_stray_copy(hook: Hook, module: nn.Module, tensors: Any) -> None:
    """A copied model carries copies of the hooks; if the router was not copied with it, no labels ever reach them."""
    if not hook.state.orphan or not torch.is_grad_enabled():
        return
    if module.training:
        raise UsageError(
            f"site {hook.name!r}: this model is a copy of a routed model, and its router was not copied "
            "with it, so nothing can route it. Copy both at once: copy.deepcopy((model, router)) or a RoutedModule."
        )
    if torch.compiler.is_compiling():
        return

    def warn(_: Tensor) -> None:
        hook.state.warn(
            "stray copy",
            f"site {hook.name!r}: a copy of a routed model without its router learns, in evaluation mode, and nothing "
            "routes it. Copy both at once: copy.deepcopy((model, router)) or a RoutedModule.",
            stacklevel=2,
        )

    when_gradients_come(tensors, warn)  # in evaluation it is the backward pass that says whether anything learns
