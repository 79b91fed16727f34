"""What routing must do to a model's gradients, on plain copies of it and by PyTorch's own means alone.

Nothing here is of gradroute: masks are written by hand, and multiply gradients in hooks of tensors.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import random
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

Path = tuple[Any, ...]
Gradients = dict[str, Tensor]

#: What unit u may be taught by, and how much, of u % 4: by label 0, by label 1 by half, by both, and by nobody.
WEIGHTS = torch.tensor([[1.0, 0.0, 1.0, 0.0], [0.0, 0.5, 1.0, 0.0]], dtype=torch.float64)


def unit_weights(width: int) -> Tensor:
    """The weights of both labels on each unit: [2, width]."""
    return WEIGHTS[:, torch.arange(width) % 4]


@dataclasses.dataclass(frozen=True)
class Spot:
    """Which tensor of which module's output is routed, along which dimension, and the label of each example."""

    module: str
    path: Path
    dim: int
    labels: Tensor
    #: Every unit closed for all, in place of the weights above.
    closed: bool = False

    def masked(self, grad: Tensor) -> Tensor:
        """The gradient, example by example along the first dimension, times the weights of the units."""
        if self.closed:
            return torch.zeros_like(grad)
        rows = unit_weights(grad.shape[self.dim])[self.labels].to(grad.dtype)
        shape = [1] * grad.ndim
        shape[0], shape[self.dim] = rows.shape
        return grad * rows.view(shape)


# ---------------------------------------------------------------------- nested outputs


def tensors(nest: Any, path: Path = ()) -> Iterator[tuple[Path, Tensor]]:
    """The floating tensors in nested tuples, lists, dicts and dataclasses, and the way to each."""
    if isinstance(nest, Tensor):
        if nest.is_floating_point():
            yield path, nest
    elif isinstance(nest, Mapping):
        for key in nest:
            yield from tensors(nest[key], (*path, key))
    elif isinstance(nest, tuple | list):
        for i, inner in enumerate(nest):
            yield from tensors(inner, (*path, i))
    elif dataclasses.is_dataclass(nest) and not isinstance(nest, type):
        for field in dataclasses.fields(nest):
            yield from tensors(getattr(nest, field.name), (*path, field.name))


def changed(nest: Any, change: Callable[[Path, Tensor], Tensor], path: Path = ()) -> Any:
    """A copy of the nest, each of its floating tensors changed."""
    if isinstance(nest, Tensor):
        return change(path, nest) if nest.is_floating_point() else nest
    if isinstance(nest, Mapping) and dataclasses.is_dataclass(nest):  # transformers' ModelOutput
        return type(nest)(**{key: changed(nest[key], change, (*path, key)) for key in nest})
    if isinstance(nest, dict):
        return type(nest)({key: changed(nest[key], change, (*path, key)) for key in nest})
    if isinstance(nest, tuple | list):
        items = [changed(inner, change, (*path, i)) for i, inner in enumerate(nest)]
        return type(nest)(*items) if hasattr(nest, "_fields") else type(nest)(items)
    if dataclasses.is_dataclass(nest) and not isinstance(nest, type):
        names = [field.name for field in dataclasses.fields(nest)]
        return dataclasses.replace(nest, **{n: changed(getattr(nest, n), change, (*path, n)) for n in names})
    return nest


# ---------------------------------------------------------------------- one run of a model


def seed() -> None:
    """Every run draws the same numbers."""
    torch.manual_seed(0)
    random.seed(0)
    np.random.seed(0)


def loss_of(output: Any) -> Tensor:
    """A number that every output of the model takes part in."""
    generator = torch.Generator().manual_seed(1)
    total = torch.zeros((), dtype=torch.float64)
    for _, y in tensors(output):
        if y.requires_grad:
            total = (
                total + (y * torch.randn(y.shape, generator=generator, dtype=torch.float64)).sum() + y.square().mean()
            )
    return total


@dataclasses.dataclass
class Run:
    """What a run left: outputs, gradients of parameters and of inputs, buffers."""

    outputs: list[Tensor]
    gradients: Gradients
    buffers: dict[str, Tensor]


def run(
    model: nn.Module,
    batch: dict[str, Tensor],
    context: Callable[[], Any] = contextlib.nullcontext,
    *,
    learn: bool = True,
) -> Run:
    """One forward and, with ``learn=True``, one backward pass of the model, inside of a context."""
    seed()
    inputs = {k: v.clone().requires_grad_() if v.is_floating_point() else v.clone() for k, v in batch.items()}
    with context():
        # An operation first: some models change their input in place, which no leaf may be.
        output = model(**{k: v * 1 if v.is_floating_point() else v for k, v in inputs.items()})
        if learn:
            loss_of(output).backward()
    found = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    found |= {f"input {k}": v.grad for k, v in inputs.items() if v.grad is not None}
    return Run([y.detach() for _, y in tensors(output)], found, {n: b.clone() for n, b in model.named_buffers()})


# ---------------------------------------------------------------------- the two levels


def at_activations(model: nn.Module, spot: Spot, step: Callable[..., Run]) -> Gradients:
    """Everything behind the site's tensor learns from its masked gradient."""
    twin = copy.deepcopy(model)

    def route(place: Path, y: Tensor) -> Tensor:
        if place != spot.path or not y.requires_grad:
            return y
        routed = y.clone()
        routed.register_hook(spot.masked)
        return routed

    twin.get_submodule(spot.module).register_forward_hook(lambda module, args, output: changed(output, route))
    return step(twin).gradients


def at_parameters(model: nn.Module, spot: Spot, step: Callable[..., Run]) -> Gradients:
    """The module's parameters learn from the masked gradient; all else as without routing.

    One plain run records the gradients that come into the module's outputs. In another one its inputs are cut off from
    what made them, so that from its outputs one gets to its own parameters and to nothing else.
    """
    arriving: list[dict[Path, Tensor]] = []
    whole = copy.deepcopy(model)

    def listen(module: nn.Module, args: Any, output: Any) -> Any:
        came: dict[Path, Tensor] = {}
        arriving.append(came)

        def copied(place: Path, y: Tensor) -> Tensor:
            if not y.requires_grad:
                return y
            y = y.clone()
            y.register_hook(lambda grad: came.__setitem__(place, grad))
            return y

        return changed(output, copied)

    whole.get_submodule(spot.module).register_forward_hook(listen)
    gradients = dict(step(whole).gradients)

    leaving: list[dict[Path, Tensor]] = []
    alone = copy.deepcopy(model)
    module = alone.get_submodule(spot.module)
    own = [p for p in module.parameters() if p.requires_grad]

    def cut(module: nn.Module, args: Any, kwargs: Any) -> Any:
        return changed(args, lambda _, x: x.detach()), changed(kwargs, lambda _, x: x.detach())

    def keep(module: nn.Module, args: Any, output: Any) -> Any:
        leaving.append({place: y for place, y in tensors(output) if y.requires_grad})
        return changed(output, lambda _, y: y.clone())

    module.register_forward_pre_hook(cut, with_kwargs=True)
    module.register_forward_hook(keep)

    def learnt(masked: bool) -> list[Tensor | None]:
        ends, grads = [], []
        for came, left in zip(arriving, leaving, strict=True):
            for place, y in left.items():
                if place in came:
                    grad = came[place]
                    ends.append(y)
                    grads.append(spot.masked(grad) if masked and place == spot.path else grad)
        if not ends:
            return [None] * len(own)
        return list(torch.autograd.grad(ends, own, grads, retain_graph=True, allow_unused=True))

    step(alone, learn=False)
    names = {id(p): n for n, p in alone.named_parameters()}
    for p, plain, routed in zip(own, learnt(masked=False), learnt(masked=True), strict=True):
        if routed is not None and plain is not None:
            # A parameter that is used outside of the module too learns there as without routing.
            gradients[names[id(p)]] = gradients[names[id(p)]] - plain + routed
    return gradients
