"""Passes that learn outside of a block: unrouted. That is right in evaluation, and may be meant; so it is said once."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ... import _torch_private as private
from .._attachment import AnySite, Hook
from .._nested import any_requires_grad
from .._site import has_learning_tensors
from ._gradients import when_gradients_come


def learns(hook: Hook, module: nn.Module, tensors: Any) -> bool:
    """Whether anything learns through a pass of this site."""
    if not torch.is_grad_enabled():
        return False
    # What reads an input learns also where the input, such as a batch of data, does not.
    return (hook.routes_parameters and has_learning_tensors(module)) or any_requires_grad(tensors)


def warn_of_missing_labels(hook: AnySite) -> None:
    """A training pass is one that learns."""
    hook.state.warn_unrouted(hook.name, stacklevel=5)


def watch_for_missing_labels(hook: Hook, module: nn.Module, tensors: Any) -> None:
    """In evaluation mode it is the backward pass that says whether anything learns: the module's own parameters.

    Whoever looks at gradients asks for those of other tensors.
    """
    own = [parameter for parameter in module.parameters() if parameter.requires_grad]
    if not own or hook.state.has_warned("no labels"):
        return

    def warn(_: Tensor) -> None:
        if any(map(private.is_reached_in_backward, own)):
            hook.state.warn(
                "no labels",
                f"site {hook.name!r} learned in evaluation mode with no labels set: its gradients are not routed. Put "
                "the forward pass inside `with router(labels):`. If you only look at gradients, ask "
                "torch.autograd.grad for those of the tensors that you look at, or silence gradroute.UnroutedWarning.",
                stacklevel=2,
            )

    when_gradients_come(tensors, warn)
