"""Whether routing works where it was installed: what ``python -m gradroute`` prints, for a bug report.

The models are tiny and all numbers in them are small integers. Sums of these are exact in whatever order they are
taken, so that every law can be checked by ``==``, on any device.
"""

from __future__ import annotations

import os
import platform
import traceback
from collections.abc import Callable, Iterator
from typing import Literal, NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from . import __version__
from . import _torch_private as private
from .autograd._functional import SMALL, route
from .router._router import Router
from .router._site import Site
from .spec._masks import UNLABELED
from .spec._spec import RoutingSpec

Law: TypeAlias = tuple[str, bool]
Check: TypeAlias = Callable[[torch.device], Iterator[Law]]

SPEC = RoutingSpec({"a": [0, 1], "b": 2}, 4, shared=3)
LABELS = ["a", "b", UNLABELED]
# Written by hand, so that what the spec makes of the labels is checked too.
MASK = [[1, 1, 0, 1], [0, 0, 1, 1], [1, 1, 1, 1]]
MANY = SMALL // len(MASK)
"""How often the examples are repeated where the tensors are to be no small ones."""


def environment() -> dict[str, str]:
    """What a bug report needs to say about the place where the bug was seen."""
    device = _accelerator()
    return {
        "gradroute": __version__,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": f"{platform.python_version()} ({platform.python_implementation()})",
        "platform": platform.platform(),
        "cpu": f"{platform.machine()}, {os.cpu_count()} cores, {torch.backends.cpu.get_cpu_capability()}",
        "threads": f"{torch.get_num_threads()} in an operation, {torch.get_num_interop_threads()} between operations",
        "accelerator": "none" if device is None else f"{device.type} {_name(device)}".rstrip(),
    }


def report(*, compiled: bool = True) -> bool:
    """Print the environment, and every law with its verdict.

    Args:
        compiled: Whether to try `torch.compile` too, which needs a C++ compiler and takes most of the time.

    Returns:
        Whether all laws hold that could be tried.
    """
    for name, value in environment().items():
        print(f"{name:<12} {value}")
    devices = [torch.device("cpu"), *([device] if (device := _accelerator()) is not None else [])]
    good = True
    for device in devices:
        print(f"\nself-check on {device.type}")
        for check in (functional_form, level_activations, level_parameters):
            good &= _holds(check, device)
        if not compiled:
            print(_line("not tried", "torch.compile, as was asked for"))
        elif reason := _why_not_compiled(device):
            print(_line("not available", f"torch.compile, with or without gradroute: {reason}"))
        else:
            good &= _holds(compiled_forms, device)
    print("\nRouting works here." if good else "\nRouting does NOT work here. Please report all of the above.")
    return good


def functional_form(device: torch.device) -> Iterator[Law]:
    """The laws of `gradroute.route`, which goes one way for small tensors and another for large ones."""
    for name, times in (("route", 1), ("route of many", MANY)):
        x, labels = _integers(3 * times, 4, device=device).requires_grad_(), _labels(device).repeat(times)
        mask = _mask(device).bool().repeat(times, 1)
        output = route(x, labels, SPEC)
        (gradient,) = torch.autograd.grad(output.square().sum(), x, retain_graph=True)
        (infinite,) = torch.autograd.grad(output, x, torch.full_like(output, torch.inf))
        yield f"{name}: the output is bitwise the same", torch.equal(output, x)
        yield f"{name}: the gradient off the route is exactly 0", not bool(gradient[~mask].any())
        yield f"{name}: the gradient on the route is the unrouted one", torch.equal(gradient[mask], 2 * x[mask])
        yield f"{name}: off the route an infinite gradient is exactly 0 too", not bool(infinite[~mask].any())


def level_activations(device: torch.device) -> Iterator[Law]:
    """The laws of a `Router` at level "activations"."""
    model = _Model(device)
    for name, times in (("Router", 1), ("Router of many", MANY)):
        x = _integers(3, 3, device=device)
        x = torch.cat([x, x.new_zeros(3 * times - 3, 3)]).requires_grad_()  # so that sums over examples stay exact
        output, expected = model(x), _by_hand(model, x)
        router = Router(model, {"first": SPEC})
        with router(_labels(device).repeat(times)):
            routed = model(x)
            rows, upstream = torch.autograd.grad(routed.square().sum(), (model.first.weight, x))
        yield f"{name}: the output is bitwise the same", torch.equal(routed, output)
        yield f"{name}: each row learns from the labels of its unit alone", torch.equal(rows, expected.rows)
        yield f"{name}: upstream learns through the route alone", torch.equal(upstream, expected.upstream_of_mask)
        router.remove()
    (upstream,) = torch.autograd.grad(model(x).square().sum(), x)
    ends: tuple[Literal["input", "output"], ...] = ("input", "output")
    hooks = [hook for module in model.modules() for end in ends for hook in private.forward_hooks(module, end)]
    left = bool(hooks) or not torch.equal(upstream, expected.upstream)
    yield "Router: once removed, it leaves nothing behind", not left


def level_parameters(device: torch.device) -> Iterator[Law]:
    """The laws of a `Router` at level "parameters"."""
    model, x = _Model(device), _integers(3, 3, device=device).requires_grad_()
    output, expected = model(x), _by_hand(model, x)
    writes, reads = Site(SPEC, level="parameters"), Site(SPEC, on="input", level="parameters")
    with Router(model, {"first": writes, "second": reads})(_labels(device)):
        routed = model(x)
        learning = (model.first.weight, model.second.weight, x)
        rows, columns, upstream = torch.autograd.grad(routed.square().sum(), learning)
    yield "parameters: the output is bitwise the same", torch.equal(routed, output)
    yield "parameters: each row learns from the labels of its unit alone", torch.equal(rows, expected.rows)
    yield "parameters: each column learns from the labels of its unit alone", torch.equal(columns, expected.columns)
    yield "parameters: upstream learns from all", torch.equal(upstream, expected.upstream)


def compiled_forms(device: torch.device) -> Iterator[Law]:
    """The same compiled, under `torch.func.grad` too, where a mask is lost most easily."""
    x, labels = _integers(3, 4, device=device).requires_grad_(), _labels(device)
    masked = 2 * x.detach() * _mask(device)
    (gradient,) = torch.autograd.grad(torch.compile(_loss)(x, labels), x)
    yield "compiled route: the gradient is masked", torch.equal(gradient, masked)
    gradient = torch.compile(torch.func.grad(_loss))(x.detach(), labels)
    yield "compiled torch.func.grad of route: the gradient is masked", torch.equal(gradient, masked)
    model, y = _Model(device), _integers(3, 3, device=device)
    expected = _by_hand(model, y)
    with Router(model, {"first": SPEC})(labels):
        (rows,) = torch.autograd.grad(torch.compile(model)(y).square().sum(), model.first.weight)
    yield "compiled Router: each row learns from the labels of its unit alone", torch.equal(rows, expected.rows)


def _holds(check: Check, device: torch.device) -> bool:
    """Print each law of a check with its verdict. What raises fails, and is shown."""
    good = True
    try:
        for law, holds in check(device):
            print(_line("ok" if holds else "FAILED", law))
            good &= holds
    except Exception:  # whatever it is: a report that breaks off is worth less than one that holds it
        print(_line("FAILED", f"{check.__name__} raised:\n{traceback.format_exc()}"))
        good = False
    return good


def _line(verdict: str, law: str) -> str:
    return f"  {verdict:<14} {law}"


def _why_not_compiled(device: torch.device) -> str:
    """Why `torch.compile` does not work here even without gradroute; empty if it does."""
    try:
        x = _integers(3, device=device).requires_grad_()
        torch.autograd.grad(torch.compile(torch.square)(x).sum(), x)
    except Exception as error:  # no compiler, no such backend, a version of Python that is too new for this torch
        return f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"
    return ""


class _Model(nn.Module):
    """Three inputs, four units and two outputs."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.first = nn.Linear(3, 4, device=device)
        self.second = nn.Linear(4, 2, device=device)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(_integers(*parameter.shape, device=device))

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.second(self.first(x).relu())
        return output


class _Expected(NamedTuple):
    """Gradients of the squares of the output, routed at the four units, by the definitions.

    Attributes:
        rows: Of the first layer's weight: the mask is on the gradient of what it writes.
        columns: Of the second layer's weight: the mask is on what it reads.
        upstream: Of the input, unrouted.
        upstream_of_mask: Of the input, where the mask is on the gradient of the units.
    """

    rows: Tensor
    columns: Tensor
    upstream: Tensor
    upstream_of_mask: Tensor


def _by_hand(model: _Model, x: Tensor) -> _Expected:
    x, mask = x.detach().requires_grad_(), _mask(x.device).repeat(len(x) // len(MASK), 1)
    units = model.first(x)
    active = units.relu()
    output = model.second(active)
    at_x, at_units, at_output = torch.autograd.grad(output.square().sum(), (x, units, output))
    masked = at_units * mask
    return _Expected(masked.T @ x.detach(), at_output.T @ (active * mask).detach(), at_x, masked @ model.first.weight)


def _integers(*shape: int, device: torch.device) -> Tensor:
    """Whole numbers from -2 to 2."""
    return (torch.arange(torch.Size(shape).numel(), device=device) * 3 % 5 - 2.0).view(shape)


def _labels(device: torch.device) -> Tensor:
    return SPEC.encode(LABELS).to(device)


def _mask(device: torch.device) -> Tensor:
    return torch.tensor(MASK, dtype=torch.float32, device=device)


def _loss(x: Tensor, labels: Tensor) -> Tensor:
    return route(x, labels, SPEC).square().sum()


def _accelerator() -> torch.device | None:
    return torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else ""
