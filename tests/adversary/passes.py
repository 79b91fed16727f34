"""One forward pass of the machine's model, and what its gradients should be."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as checkpointed

from adversary.models import BATCH, TIME, WIDTH, build, purely, seed_cheaply
from adversary.oracle import Oracle, Place


class Lost(AssertionError):
    """A gradient, a value or a buffer is not what it should be, and nothing raised or warned."""


class Crash(AssertionError):
    """Something raised that is no RoutingError."""


def draw_input(seed: int) -> Tensor:
    return torch.randn(BATCH, TIME, WIDTH, generator=torch.Generator().manual_seed(seed)).requires_grad_()


def loss_of(output: Tensor) -> Tensor:
    weights = torch.randn(output.shape, generator=torch.Generator().manual_seed(1))
    return (output * weights).sum()


def forward(model: Any, x: Tensor, seed: int, mode: str, checkpoint: str | None) -> Tensor:
    """One pass, with its own draws of random numbers."""
    seed_cheaply(seed)
    modes = {"grad": contextlib.nullcontext, "no_grad": torch.no_grad, "inference": torch.inference_mode}
    with modes[mode]():
        if checkpoint is None or mode == "inference":
            return model(x)
        return checkpointed(model, x, use_reentrant=checkpoint == "reentrant")


def run_elsewhere(where: str, job: Callable[[], Tensor]) -> Tensor:
    """Run a job here, in a new thread, or in an asyncio task; errors come back."""
    if where == "here":
        return job()
    if where == "task":

        async def task() -> Tensor:
            return job()

        return asyncio.run(task())
    done: list[Any] = []

    def work() -> None:
        try:
            done.append(job())
        except BaseException as error:
            done.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    if isinstance(done[0], BaseException):
        raise done[0]
    return done[0]


@dataclasses.dataclass(repr=False)
class Pass:
    """A pass whose backward is to come, and the gradients that it must give."""

    output: Tensor
    x: Tensor
    model: nn.Module
    expected: Expected
    checkpoint: str | None
    routed: bool  # whether it had labels
    unrouted: bool  # whether it learns although nothing routes it, which must be said
    router: Any
    warned: bool
    said: list[str]  # of its model and router, which may be copied, and removed, before its backward

    def check(self, key: Callable[[str], str]) -> None:
        """Hold the gradients that are there against the expected ones."""
        there = {key(name): p for name, p in self.model.named_parameters()} | {"": self.x}
        for name, gradient in self.expected.gradients.items():
            got = torch.zeros_like(gradient) if there[name].grad is None else there[name].grad
            if not torch.allclose(got, gradient, rtol=1e-4, atol=1e-5):
                raise Lost(f"the gradient of {name or 'the input'} is wrong by {(got - gradient).abs().max():.2g}")


@dataclasses.dataclass(repr=False)
class Expected:
    """What the oracle says of one pass."""

    gradients: dict[str, Tensor]
    buffers: dict[str, Tensor]
    value: Tensor

    @staticmethod
    def of(names: tuple[str, ...], state: dict[str, Tensor], places: list[Place], train: bool, seed: int) -> Expected:
        """The gradients by the oracle; and buffers and output of an ordinary model, unless something is ablated."""
        plain, pure = build(names).train(train), purely(build(names)).train(train)
        plain.load_state_dict(state)
        pure.load_state_dict(state)
        with torch.no_grad():
            value = forward(plain, draw_input(seed), seed, "grad", None)
        oracle, x = Oracle(pure, places), draw_input(seed)
        output = forward(pure, x, seed, "grad", None)
        if any(place.on_units is not None for place in places):
            plain, value = pure, output.detach()
        return Expected(oracle.gradients(loss_of(output), {"": x}), dict(plain.named_buffers()), value)
