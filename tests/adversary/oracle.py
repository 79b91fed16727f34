"""What every gradient should be, by the definition alone: nothing here is taken from gradroute.

What is ablated is put to 0 where the site is, after the routing of either level.

Level "activations": the tensor of the site is cloned, and a tensor hook multiplies the clone's gradient by the mask.

Level "parameters": the model runs once, without routing. The gradient that reaches the site's tensor is kept; what of
it the mask takes away is sent through the module a second time, with gates closed where the tensors come in, so that
the module's own parameters alone see it; and this is what is taken off their gradients.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

Path = tuple[int | str, ...]


@dataclasses.dataclass(frozen=True)
class Place:
    """A site in words that the oracle understands; `mask` makes the mask for the site's tensor, in its shape.

    `on_units` says, in a shape that broadcasts against the tensor, which units are not ablated.
    """

    module: str
    mask: Callable[[Tensor], Tensor]
    level: str = "activations"
    on: str = "output"
    path: Path = ()
    on_units: Callable[[Tensor], Tensor] | None = None

    def ablated(self, x: Tensor) -> Tensor:
        return x if self.on_units is None else torch.where(self.on_units(x), x, 0)


class Gate(torch.autograd.Function):
    """Forward: identity. Backward: the gradient while the gate is open, and 0 while it is closed."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, gate: dict[str, bool]) -> Tensor:
        ctx.gate = gate
        return x.clone()  # a view could not be edited in place

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return (grad if ctx.gate["open"] else torch.zeros_like(grad)), None


class Oracle:
    """Puts the places on a model of its own (a copy that nothing else uses), and computes its gradients."""

    def __init__(self, model: nn.Module, places: list[Place]) -> None:
        self.model = model
        self.gate = {"open": True}
        self.taken_off: list[Callable[[], Iterator[tuple[str, Tensor]]]] = []
        for name in {place.module: None for place in places}:
            self._put(name, [place for place in places if place.module == name])

    def gradients(self, loss: Tensor, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The gradients of all parameters and inputs, by name; what gets none is 0."""
        named = {**dict(self.model.named_parameters()), **inputs}
        wanted = {name: tensor for name, tensor in named.items() if tensor.requires_grad}
        found = torch.autograd.grad(
            loss, list(wanted.values()), retain_graph=True, allow_unused=True, materialize_grads=True
        )
        gradients = dict(zip(wanted, found, strict=True))
        self.gate["open"] = False
        for pieces in self.taken_off:
            for name, piece in pieces():
                gradients[name] = gradients[name] - piece
        self.gate["open"] = True
        return gradients

    def _put(self, name: str, places: list[Place]) -> None:
        module = self.model.get_submodule(name)
        before = [place for place in places if place.on == "input"]
        after = [place for place in places if place.on == "output"]

        def gated(args: Any) -> Any:
            return mapped(args, lambda x: Gate.apply(x, self.gate) if x.requires_grad else x)

        def on_input(module: nn.Module, args: Any, kwargs: Any) -> Any:
            for place in before:
                args = edited(args, place.path or (0,), lambda x, place=place: self._route_input(name, x, place))
            return gated(args), gated(kwargs)

        def on_output(module: nn.Module, args: Any, output: Any) -> Any:
            for place in before:
                if place.level == "parameters":  # of the output as it is, whose gradient the sites on it have masked
                    self._note_reader(name, module, output, place)
            for place in sorted(after, key=lambda place: place.level == "activations"):  # their hook is outside
                output = edited(output, place.path, lambda y, place=place: self._route_output(name, y, place))
            return output

        module.register_forward_pre_hook(on_input, with_kwargs=True)
        module.register_forward_hook(on_output)

    def _route_input(self, name: str, x: Tensor, place: Place) -> Tensor:
        if place.level == "activations":
            return place.ablated(masked(x, place.mask(x)))
        x = place.ablated(x)
        self.read = x.detach().clone()
        return x

    def _route_output(self, name: str, y: Tensor, place: Place) -> Tensor:
        mask = place.mask(y)
        if not y.requires_grad:
            return place.ablated(y)
        if place.level == "activations":
            return place.ablated(masked(y, mask))
        leaves = (
            y.clone()
        )  # what goes out: what the module itself reads of y is not the site's, nor what is done in place
        seen = keep_gradient(leaves)

        def pieces() -> Iterator[tuple[str, Tensor]]:
            own = {f"{name}.{key}".lstrip("."): p for key, p in self.model.get_submodule(name).named_parameters()}
            known = [(key, p) for key, p in self.model.named_parameters() if any(p is q for q in own.values())]
            known = [(key, p) for key, p in known if p.requires_grad]
            if seen and known:
                lost = seen[0] * (1 - mask)
                found = torch.autograd.grad(
                    y, [p for _, p in known], lost, retain_graph=True, allow_unused=True, materialize_grads=True
                )
                yield from zip((key for key, _ in known), found, strict=True)

        self.taken_off.append(pieces)
        return place.ablated(leaves)

    def _note_reader(self, name: str, module: nn.Module, y: Tensor, place: Place) -> None:
        x, seen, mask = self.read, keep_gradient(y), place.mask(self.read)

        def pieces() -> Iterator[tuple[str, Tensor]]:
            if seen and module.weight.requires_grad:  # of a layer whose output is linear in its input
                weight = module.weight.detach().requires_grad_()
                bare = type(module).forward
                with torch.enable_grad():
                    part = functional_call(Bare(module, bare), {"inner.weight": weight}, (x * (1 - mask),))
                yield f"{name}.weight", torch.autograd.grad(part, weight, seen[0])[0]

        self.taken_off.append(pieces)


class Bare(nn.Module):
    """A module's own forward, without its hooks."""

    def __init__(self, inner: nn.Module, forward: Callable[..., Tensor]) -> None:
        super().__init__()
        self.inner, self.bare = inner, forward

    def forward(self, x: Tensor) -> Tensor:
        return self.bare(self.inner, x)


def masked(x: Tensor, mask: Tensor) -> Tensor:
    """A clone of x whose gradient is multiplied by the mask."""
    x = x.clone()
    if x.requires_grad:
        x.register_hook(lambda grad: grad * mask.to(grad.dtype))
    return x


def keep_gradient(y: Tensor) -> list[Tensor]:
    """A list that will hold the gradient of y once a backward pass has computed it."""
    seen: list[Tensor] = []
    y.register_hook(lambda grad: seen.append(grad) if not seen else None)
    return seen


def mapped(value: Any, edit: Callable[[Tensor], Tensor]) -> Any:
    """The same tuples, lists and dicts with each tensor edited; what is something else stays what it is."""
    if isinstance(value, Tensor):
        return edit(value)
    if type(value) in (tuple, list):
        return type(value)(mapped(inner, edit) for inner in value)
    if type(value) is dict:
        return {key: mapped(inner, edit) for key, inner in value.items()}
    return value


def edited(value: Any, path: Path, edit: Callable[[Tensor], Tensor]) -> Any:
    """The same nested value with the tensor at a path edited."""
    if not path:
        return edit(value)
    first, *rest = path
    if isinstance(value, tuple):
        parts = [edited(v, tuple(rest), edit) if i == first else v for i, v in enumerate(value)]
        return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
    if dataclasses.is_dataclass(value) and not isinstance(value, Mapping):
        return dataclasses.replace(value, **{first: edited(getattr(value, first), tuple(rest), edit)})
    value[first] = edited(value[first], tuple(rest), edit)
    return value
