"""`Runs`: the user's step, run again and again on parts of the batch, each time from the same state of the world."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from ...errors import UsageError
from ...optim._held_entries import without_held
from ...router._attachment import Labels, attachment_of
from ...router._router import Router
from ..audit._graph_paths import nodes
from ._batches import Group, take
from ._gradient_hooks import GradientHooks
from ._site_probes import Edit, Probes, Seen
from ._untouched import Untouched, norm, trainable

LossStep: TypeAlias = Callable[[Any], Tensor]
"""From a batch to the loss: the forward pass of a step of training."""


@dataclass
class Run:
    """One forward and backward pass.

    Attributes:
        loss: The loss, with its graph.
        gradients: The gradient of each parameter that requires one; None where none arrives.
        seen: The sites' tensors.
        calls: How often each site's module was called.
        at_sites: The gradient that arrives at each of them.
        forks: The tensors that the user's own hooks saw before a router did, by the name of their module.
        hooked: Whether the user has hooks that may change gradients.
    """

    loss: Tensor
    gradients: dict[str, Tensor | None]
    seen: list[list[Seen]]
    calls: list[int]
    at_sites: list[list[Tensor | None]]
    forks: dict[str, list[GradientEdge]] = field(default_factory=dict)
    hooked: bool = False

    @property
    def norm(self) -> float:
        """The norm of the whole gradient."""
        return norm(self.gradients.values())


class Runs:
    """Runs the user's step on parts of the batch, each time from the same state of the world.

    Args:
        router: The router.
        step: From a batch to the loss.
        batch: The batch.
        size: The number of its examples; None where labels do not say.
        untouched: What puts the world back.
    """

    def __init__(self, router: Router, step: LossStep, batch: Any, size: int | None, untouched: Untouched) -> None:
        self.router = router
        self._step = step
        self._batch = batch
        self._size = size
        self._untouched = untouched
        self._parameters = trainable(router.model)

    @property
    def several(self) -> bool:
        """Whether the batch holds examples that could trade places."""
        return self._size is not None and self._size > 1

    def label(self, group: Group, *, routed: bool, without_hooks: bool = False) -> Run:
        """Forward and backward of one label's examples, routed or not, with the user's gradient hooks or without.

        Raises:
            UsageError: The step returns no scalar loss, or gradients are not finite.
        """
        self._untouched.rewind()
        batch = take(self._batch, group.examples, self._size)
        hooks = GradientHooks(self.router.model, leave_out=without_hooks)
        with contextlib.nullcontext() if routed else attachment_of(self.router).suspended(), hooks:
            run = self._run(batch, group.labels)
        run.hooked = hooks.found
        return run

    def _run(self, batch: Any, labels: Labels) -> Run:
        with Probes(self.router) as probes, torch.enable_grad(), self.router(labels):
            loss = self.loss(batch)
            probes.close()
            seen = [(site, item) for site, items in enumerate(probes.seen) for item in items if item.edge is not None]
            edges = [item.edge for _, item in seen if item.edge is not None]
            parameters = list(self._parameters.values())
            found = gradients(loss, [*parameters, *edges])
        n = len(parameters)
        at_sites: list[list[Tensor | None]] = [[] for _ in probes.seen]
        for (site, _), gradient in zip(seen, found[n:], strict=True):
            at_sites[site].append(gradient)
        by_name = {
            name: gradient if gradient is None else without_held(parameter, gradient)
            for (name, parameter), gradient in zip(self._parameters.items(), found[:n], strict=True)
        }
        for name, gradient in by_name.items():
            if not math.isfinite(norm([gradient])):
                raise UsageError(
                    f"the gradient of {name!r} is not finite, so there is nothing to audit: find out why it is inf or "
                    "NaN first, or leave the examples out that make it so."
                )
        kept = [[item for item in items if item.edge is not None] for items in probes.seen]
        calls = [len(items) for items in probes.seen]
        return Run(loss, by_name, kept, calls, at_sites, probes.forks)

    def loss(self, batch: Any) -> Tensor:
        """What the step makes of a batch.

        Raises:
            UsageError: It is no scalar tensor with a graph.
        """
        loss = self._step(batch)
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            given = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
            raise UsageError(f"step(batch) must return the loss, a tensor with one entry; got {given}.")
        return loss

    def whole(self, labels: Labels, edit: Edit | None = None, *, traded: bool = False) -> tuple[Tensor, Probes]:
        """The loss of the whole batch, unrouted, with the sites' tensors edited; for a graph, under grad mode.

        With ``traded=True`` each example is in the place of the one before it.
        """
        self._untouched.rewind()
        batch = self._batch
        if traded and self._size is not None:
            batch = take(batch, torch.arange(1, self._size + 1, device="cpu") % self._size, self._size)
        with attachment_of(self.router).suspended(), Probes(self.router, edit) as probes, self.router(labels):
            loss = self.loss(batch)
            probes.close()
        return loss, probes


def gradients(loss: Tensor, inputs: list[Any]) -> list[Tensor | None]:
    """The gradients of a loss. Nobody's ``.grad`` is touched.

    Raises:
        UsageError: The loss has no graph, or it holds reentrant checkpoints.
    """
    if loss.grad_fn is None:
        raise UsageError(
            "step(batch) must return a loss with a graph, and this one does not require gradients: compute it outside "
            "of torch.no_grad(), and without calling backward() or detach()."
        )
    # Asked by torch.autograd.grad, these give no gradient, and say nothing.
    if any(node.name().startswith("CheckpointFunctionBackward") for node in nodes([loss.grad_fn])):
        raise UsageError(
            "an audit cannot look into reentrant activation checkpoints, which hide their graph: checkpoint with "
            "use_reentrant=False."
        )
    return list(torch.autograd.grad(loss, inputs, allow_unused=True))
