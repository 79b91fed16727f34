"""The only code here that measures memory: what a graph keeps until backward, and how much backward holds at once.

Hooks on saved tensors would miss what an autograd Function keeps as an attribute, and a dispatch mode what compiled
code allocates by itself. So this counts what the allocator hands out: on the CPU from the profiler's record of every
allocation and release, on CUDA from the allocator's own statistics.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile, record_function

from cases import Case, Routing, no_routing

FORWARD, BACKWARD = "benchmark_forward", "benchmark_backward"


@dataclass(frozen=True)
class Memory:
    """In bytes.

    Attributes:
        saved: What is alive after the forward pass only because the graph keeps it.
        forward: The most that the forward pass held at once.
        backward: The most that the backward pass held at once, beyond what was alive when it started.
        largest: The largest single allocation in both. None on CUDA, which does not tell.
    """

    saved: int
    forward: int
    backward: int
    largest: int | None


def measure(routing: Routing, case: Case) -> Memory:
    """The memory of routing an activation, in the smallest graph that an activation can stand in.

    The activation and the labels are made on the way and dropped at once, as in a model, so that nobody but the graph
    keeps them alive. The graph itself holds one gradient of the activation's size in backward; subtract what
    `no_routing` needs for what routing adds.
    """

    def forward() -> Tensor:
        return (routing(case.x + 0, case.labels.clone()) * case.grad).sum()

    def backward(loss: Tensor) -> None:
        torch.autograd.grad(loss, case.x)

    for _ in range(2):  # what is made once, such as tables on a device and compiled code, is no cost of a step
        backward(forward())
    return (_on_cuda if case.x.is_cuda else _on_cpu)(forward, backward)


def _on_cpu(forward: Callable[[], Tensor], backward: Callable[[Tensor], None]) -> Memory:
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        with record_function(FORWARD):
            loss = forward()
        with record_function(BACKWARD):
            backward(loss)
    recorded = profiler.profiler.kineto_results.events()
    ends = {event.name(): event.end_ns() for event in recorded if event.name() in (FORWARD, BACKWARD)}
    changes = [(event.start_ns(), event.nbytes()) for event in recorded if event.name() == "[memory]"]
    changes.sort(key=lambda change: change[0])
    alive = saved = most_in_forward = most_in_backward = 0
    for when, size in changes:
        alive += size
        if when <= ends[FORWARD]:
            saved, most_in_forward = alive, max(most_in_forward, alive)
        elif when <= ends[BACKWARD]:
            most_in_backward = max(most_in_backward, alive - saved)
    largest = max(size for _, size in changes)
    return Memory(saved - loss.nbytes, most_in_forward, most_in_backward, largest)


def _on_cuda(forward: Callable[[], Tensor], backward: Callable[[Tensor], None]) -> Memory:
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    loss = forward()
    most_in_forward = torch.cuda.max_memory_allocated() - before
    alive = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    backward(loss)
    most_in_backward = torch.cuda.max_memory_allocated() - alive
    return Memory(alive - before - loss.nbytes, most_in_forward, most_in_backward, None)


def peak(call: Callable[[], object], device: torch.device) -> int:
    """The most that a call holds at once beyond what was alive when it began, in bytes."""
    if device.type == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        call()
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        call()
    recorded = profiler.profiler.kineto_results.events()
    changes = sorted((event.start_ns(), event.nbytes()) for event in recorded if event.name() == "[memory]")
    alive = most = 0
    for _, size in changes:
        alive += size
        most = max(most, alive)
    return most


class _KnownNeeds(torch.autograd.Function):
    """Keeps one copy as an attribute, out of sight of `saved_tensors_hooks`, and holds three tensors in backward."""

    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        ctx.copy = x.clone()  # type: ignore[attr-defined]
        return x.view_as(x)

    @staticmethod
    def backward(ctx: object, grad: Tensor) -> Tensor:
        first, second = grad + 1, grad + 2
        return first + second


def check_instrument(case: Case) -> None:
    """Measure what is known, so that a change of the profiler cannot turn every claim about memory green."""
    size = case.x.nbytes
    plain = measure(no_routing, case)
    known = measure(lambda x, labels: _KnownNeeds.apply(x), case)
    slack = size // 100
    seen = (plain.saved, plain.backward, known.saved, known.backward)
    for measured, expected in zip(seen, (0, size, size, 4 * size), strict=True):
        if abs(measured - expected) > slack:
            raise RuntimeError(f"memory is measured wrong: {seen} bytes, expected 0, 1, 1 and 4 times {size}.")
