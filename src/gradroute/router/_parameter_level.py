"""Level "parameters": a module's own parameters learn by route, while the gradient to what is upstream stays whole.

What it means, for a linear layer with weight W, and masks m of its output units u and n of its input units j: example i
computes with a weight of its own, ``m[i, u] * n[i, j] * W[u, j]``, that learns, and the rest of W[u, j], that does not.
So the weight's gradient is ``(grad * m).T @ (x * n)``, the bias's is the sum of ``grad * m``, and the input's is
``grad @ W``, as without routing.

There are two masks to it. In plain eager mode, for the layers of `own_layers`, one autograd Function computes these
products and no more. Everywhere else, and for derivatives of derivatives, the output is put together from two or three
runs of the module of which one learns: ordinary operations, which every transform of PyTorch knows.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.autograd import Function

from .. import _torch_private as private
from ..autograd._functions import Sum
from ..errors import SiteError, UsageError
from ._layer_gradients import Layer, known_layer
from ._nested import edit_arguments, edit_output
from ._site_mask import SiteMask, product, scaled, times


class MaskSource(Protocol):
    """A site that routes a module's parameters."""

    def parameter_mask(self) -> SiteMask | None:
        """The mask of the batch in flight; None outside of a block."""


class OwnForward:
    """Stands in for a module's `forward` while a router has sites of level "parameters" on it.

    It is set on the instance, as ``module.forward``, and not a hook: hooks of others, and those of sites on
    activations, see what comes out of the module, whichever came first. It copies and pickles with the module.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.previous: Any = module.__dict__.get("forward")  # somebody else's stand-in
        self.writers: list[MaskSource] = []  # of sites on the output
        self.readers: list[MaskSource] = []

    @classmethod
    def of(cls, module: nn.Module) -> OwnForward:
        """The one that stands on a module already, or a new one."""
        standing = module.__dict__.get("forward")
        if isinstance(standing, cls) and standing.module is module:
            return standing
        module.forward = cls(module)
        return module.forward

    def remove(self, hook: MaskSource) -> None:
        """Take one hook off, and the stand-in with the last."""
        for hooks in (self.writers, self.readers):
            if hook in hooks:
                hooks.remove(hook)
        if not (self.writers or self.readers) and self.module.__dict__.get("forward") is self:
            if self.previous is None:
                del self.module.forward
            else:
                self.module.forward = self.previous

    @property
    def __signature__(self) -> inspect.Signature:
        if self.previous is not None:
            return inspect.signature(self.previous)
        return inspect.signature(type(self.module).forward.__get__(self.module))

    def plain(self, *args: Any, **kwargs: Any) -> Any:
        """The module's output as it is without routing."""
        if self.previous is not None:
            return self.previous(*args, **kwargs)
        return type(self.module).forward(self.module, *args, **kwargs)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The module's output, with the gradients of its parameters routed."""
        writers, readers = _masks_of(self.writers), _masks_of(self.readers)
        learns = torch.is_grad_enabled() and any(p.requires_grad for p in self.module.parameters())
        if not (writers or readers) or not (learns or private.forward_mode() or private.transforms_active()):
            return self.plain(*args, **kwargs)
        if torch.compiler.is_compiling():
            from ..autograd import _dynamo  # noqa: F401, PLC0415  # runs while Dynamo traces: see there
        layer = known_layer(self.module) if self.previous is None else None
        if layer is None or kwargs or len(args) != 1 or any(mask.path not in ((), (0,)) for mask in readers):
            return _twice(self, (args, kwargs), writers, readers)
        return _apply(layer, self.plain, args[0], writers, readers)


def _masks_of(hooks: list[MaskSource]) -> list[SiteMask]:
    masks = []
    for hook in hooks:  # a comprehension would need :=, which Dynamo does not read here
        mask = hook.parameter_mask()
        if mask is not None:
            masks.append(mask)
    return masks


# ------------------------------------------------------------------ layers that are known


def _apply(
    layer: Layer, run: Callable[..., Any], x: Tensor, writers: list[SiteMask], readers: list[SiteMask]
) -> Tensor:
    for mask in readers:
        mask.check(x)
    plain = type(x) in (Tensor, nn.Parameter) and type(layer.weight) in (Tensor, nn.Parameter)
    if not plain or torch.compiler.is_compiling() or private.transforms_active() or private.forward_mode():
        return layer.composed(x, layer.weight, layer.bias, writers, readers)
    # Under grad mode, though its graph is not used: without, autocast would keep casted weights that have no graph.
    y = run(x).detach()
    for mask in writers:
        mask.check(y)
    return _OwnParameters.apply(y, x, layer.weight, layer.bias, layer, writers, readers)  # type: ignore[no-any-return]


class _OwnParameters(Function):
    """Forward: identity on the layer's output. Backward: the layer's gradients, those of its parameters masked."""

    @staticmethod
    def forward(  # noqa: PLR0917  # autograd takes no keywords
        ctx: Any, y: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, layer: Layer, *masks: list[SiteMask]
    ) -> Tensor:
        ctx.save_for_backward(x, weight, bias)
        # As attributes: activation checkpointing recomputes what is saved, and the router may hold other labels then.
        ctx.layer, (ctx.writers, ctx.readers) = layer, masks
        del layer.weight, layer.bias  # held by what is saved, and by nothing else
        ctx.set_materialize_grads(False)
        return y.detach()

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, ...]:
        nothing = (None,) * 3
        if grad is None:
            return (None, *nothing, *nothing)
        x, weight, bias = ctx.saved_tensors
        layer, needs = ctx.layer, ctx.needs_input_grad[1:4]
        if torch.is_grad_enabled() or private.is_wrapped(grad) or private.is_batch_of_gradients(grad):
            return (None, *_composed_gradients(ctx, grad, x, weight, bias), *nothing)
        # Autocast cast in the forward pass; here as there, products are of the output's dtype.
        with torch.autocast(grad.device.type, enabled=False):
            narrow_x, narrow_weight = x.to(grad.dtype), weight.to(grad.dtype)
            grad_x = layer.grad_input(grad, narrow_x, narrow_weight).to(x.dtype) if needs[0] else None
            own: tuple[Tensor | None, ...] = (None, None)
            if needs[1] or needs[2]:
                masked, seen = grad, narrow_x
                for mask in ctx.writers:
                    masked = mask.on(masked)
                if ctx.readers and not layer.reads_what_it_writes:
                    for mask in ctx.readers:
                        seen = mask.on(seen)
                own = layer.grad_own(masked, seen, narrow_weight, bias)
                if ctx.readers and layer.reads_what_it_writes:
                    for mask in ctx.readers:
                        masked = mask.on(masked)
                    own = layer.grad_own(masked, seen, narrow_weight, None)[0], own[1]
        grad_weight, grad_bias = (
            gradient.to(parameter.dtype) if gradient is not None and needed else None
            for gradient, parameter, needed in zip(own, (weight, bias), needs[1:], strict=True)
        )
        return (None, grad_x, grad_weight, grad_bias, *nothing)


def _composed_gradients(
    ctx: Any, grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None
) -> tuple[Tensor | None, ...]:
    inputs: list[Any] = [x, weight, bias]
    wanted = [i for i, needed in enumerate(ctx.needs_input_grad[1:4]) if needed]
    create_graph = torch.is_grad_enabled()
    with torch.enable_grad(), torch.autocast(grad.device.type, enabled=False):
        y = ctx.layer.composed(x, weight, bias, ctx.writers, ctx.readers)
    found = torch.autograd.grad(
        y, [inputs[i] for i in wanted], grad.to(y.dtype), create_graph=create_graph, allow_unused=True
    )
    gradients: list[Tensor | None] = [None, None, None]
    for i, gradient in zip(wanted, found, strict=True):
        gradients[i] = gradient
    return tuple(gradients)


# ------------------------------------------------------------------ any other module


def _twice(
    forward: OwnForward, call: tuple[tuple[Any, ...], dict[str, Any]], writers: list[SiteMask], readers: list[SiteMask]
) -> Any:
    """The module's output, from a run that learns nothing and one that learns by route."""
    module = forward.module
    transformed = torch.compiler.is_compiling() or private.transforms_active()
    if transformed and _draws_random_numbers(module):
        raise UsageError(
            f"{type(module).__name__} holds dropout that is on, and level='parameters' runs it twice, which under "
            "torch.compile and torch.func draws other numbers each time: put sites on the layers inside of it."
        )
    args, kwargs = call
    twin = _Twin(module, forward.plain)
    random = None if transformed else _RandomNumbers()
    whole = twin.without_learning(args, kwargs)
    names = list(inspect.signature(forward).parameters) if readers else []
    for mask in readers:
        # The parameters learn as if from a pass that sees the routed units only.
        args, kwargs = edit_arguments(args, kwargs, mask.path, names, partial(_seen, mask), site=mask.site)
    with random or contextlib.nullcontext():
        own = twin.on_copied_buffers(args, kwargs)
    if not writers and not isinstance(whole, Tensor):
        raise SiteError(
            f"site {readers[0].site!r}: level='parameters', on='input' needs a module that returns a tensor; "
            f"{type(module).__name__} returns a {type(whole).__name__}. Put sites on the layers inside of it."
        )
    if not writers:
        return Sum.apply(whole.detach(), whole, own)
    for path in dict.fromkeys(mask.path for mask in writers):
        masks = [mask for mask in writers if mask.path == path]
        learning: list[Tensor] = []
        edit_output(own, path, lambda y, kept=learning: kept.append(y) or y, site=masks[0].site)  # type: ignore[misc]
        whole = edit_output(whole, path, partial(_joined, learning[0], masks, bool(readers)), site=masks[0].site)
    return whole


def _seen(mask: SiteMask, x: Tensor) -> Tensor:
    return times(x.detach(), mask.weights(x))


def _joined(own: Tensor, masks: list[SiteMask], cut: bool, whole: Tensor) -> Tensor:
    """The whole output, whose gradient goes by route to the run that learns, and the rest of it to the other run.

    With ``cut=True`` nothing goes on to the input from the run that learns, so all of it goes to the other.
    """
    m = product([mask.weights(whole) for mask in masks])
    assert m is not None
    rest = whole if cut else scaled(whole, 1 - m)
    return Sum.apply(whole.detach(), scaled(own, m), rest)  # type: ignore[no-any-return]


class _Twin(nn.Module):
    """Runs a module past its hooks and its stand-in, on other parameters or buffers."""

    def __init__(self, module: nn.Module, run: Callable[..., Any]) -> None:
        super().__init__()
        self.module = module
        self.run = run

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.run(*args, **kwargs)

    def without_learning(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        fixed = {name: parameter.detach() for name, parameter in self.named_parameters()}
        # Weights that a pre-hook computes of others, as pruning and the old weight_norm do, are plain attributes.
        computed = [(name, value) for name, value in self.module.__dict__.items() if _is_computed(value)]
        try:
            for name, value in computed:
                setattr(self.module, name, value.detach())
            return torch.func.functional_call(self, fixed, args, kwargs)
        finally:
            for name, value in computed:
                setattr(self.module, name, value)

    def on_copied_buffers(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """So that running statistics count each batch once."""
        copies = {name: buffer.clone() for name, buffer in self.named_buffers()}
        return torch.func.functional_call(self, copies, args, kwargs)


def _is_computed(value: Any) -> bool:
    return isinstance(value, Tensor) and value.requires_grad


class _RandomNumbers:
    """The state of the random number generators when this was made, put back for the length of a block."""

    def __init__(self) -> None:
        self.cpu = torch.get_rng_state()
        used = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
        self.cuda = torch.cuda.get_rng_state() if used else None

    def __enter__(self) -> None:
        self.after = torch.get_rng_state(), torch.cuda.get_rng_state() if self.cuda is not None else None
        self._set(self.cpu, self.cuda)

    def __exit__(self, *exception: object) -> None:
        self._set(*self.after)

    def _set(self, cpu: Tensor, cuda: Tensor | None) -> None:
        torch.set_rng_state(cpu)
        if cuda is not None:
            torch.cuda.set_rng_state(cuda)


def _draws_random_numbers(module: nn.Module) -> bool:
    dropouts = (inner for inner in module.modules() if isinstance(inner, nn.modules.dropout._DropoutNd))
    return any(inner.training and inner.p > 0 for inner in dropouts)
