"""`RoutedModule`: a model and its router in one, with the labels as an argument of its forward."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ..errors import UsageError
from ._attachment import Labels, attachment_of
from ._checkpointing import is_recomputed
from ._router import Router, Sites


class RoutedModule(nn.Module):
    """A module and its `Router` in one, for where labels must travel as an argument: DDP, FSDP, trainers, compile.

    Args:
        model: Any module.
        sites: As for `Router`.

    Attributes:
        module: The model.
        router: Its router.

    Raises:
        SiteError: As `Router`.

    Examples:
        >>> import torch
        >>> from gradroute import RoutingSpec
        >>> model = RoutedModule(torch.nn.Linear(3, 2), {"": RoutingSpec.one_per_label(2)})
        >>> model(torch.ones(1, 3), route_labels=torch.tensor([1])).sum().backward()
        >>> model.module.bias.grad
        tensor([0., 1.])
    """

    def __init__(self, model: nn.Module, sites: Sites) -> None:
        super().__init__()
        self.module = model
        self.router = Router(model, sites)

    def forward(self, *args: Any, route_labels: Labels | None = None, **kwargs: Any) -> Any:
        """The model's output, routed by these labels.

        Args:
            *args: For the model.
            route_labels: As for ``router(labels)``. None is for evaluation only, unless the call is inside a
                ``with routed.router(labels)`` or ``with routed.router.deferred()`` block.
            **kwargs: For the model, its own ``labels=`` included.

        Raises:
            UsageError: No labels in a training pass that computes gradients: it would silently not be routed.
        """
        if route_labels is None:
            held = attachment_of(self.router).state.labels
            if self.training and torch.is_grad_enabled() and held is None and not is_recomputed():
                raise UsageError(
                    "a training forward pass without route_labels would not be routed. Pass route_labels=...; for "
                    "unlabeled data, torch.full((batch,), gradroute.UNLABELED); for evaluation, call eval() or use "
                    "torch.no_grad()."
                )
            return self.module(*args, **kwargs)
        with self.router(route_labels):
            return self.module(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        """Attributes of the model, such as a transformers model's `config`, which trainers ask for."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "module":  # not yet set: during construction, copying or unpickling
                raise
            return getattr(self.module, name)
