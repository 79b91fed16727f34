"""Level "parameters": a module's own parameters learn by route, while the gradient to what is upstream stays whole.

What it means, for a linear layer with weight W, and masks m of its output units u and n of its input units j: example i
computes with a weight of its own, ``m[i, u] * n[i, j] * W[u, j]``, that learns, and the rest of W[u, j], that does not.
So the weight's gradient is ``(grad * m).T @ (x * n)``, the bias's is the sum of ``grad * m``, and the input's is
``grad @ W``, as without routing.

There are two ways to it. In plain eager mode, for the layers of `_layer_gradients`, one autograd Function computes
these products and no more. Any other module, and any derivative of a derivative, is put together from ordinary
operations (`_any_module`), which every transform of PyTorch knows.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.autograd import Function

from .. import _torch_private as private
from ..autograd._functional import TRANSFORMED
from ..errors import RoutingError
from ..spec._masks import autocast_device
from ._any_module import routed_run
from ._layer_gradients import Layer, known_layer
from ._nested import edit_arguments, edit_output
from ._past_itself import Looks, holds_itself
from ._second_run import draws_random_numbers
from ._site import has_learning_tensors
from ._site_mask import SiteMask, tell_apart, those_for


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
        self.looks = Looks()
        # What its code says, which Dynamo, that asks for both, cannot read.
        self.draws = draws_random_numbers(module)
        self.holds_itself = holds_itself(module)
        self.arguments = list(self.__signature__.parameters)

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
        """The module's output, with the gradients of its parameters routed, and silent units off at both ends."""
        writers, readers = _masks_of(self.writers), _masks_of(self.readers)
        for mask in readers:
            if mask.mask.silences:  # here and not in a hook: a forward method that is called directly meets no hook
                args, kwargs = edit_arguments(args, kwargs, mask.path, self.arguments, mask.silenced, site=mask.site)
        output = self._routed(args, kwargs, writers, readers)
        for mask in writers:
            if mask.mask.silences:
                output = edit_output(output, mask.path, mask.silenced, site=mask.site)
        return output

    def _routed(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], writers: list[SiteMask], readers: list[SiteMask]
    ) -> Any:
        if not (writers or readers):
            return self.plain(*args, **kwargs)
        # What a transform learns by requires no gradient of itself; and Dynamo before torch 2.12 cannot look for more.
        transformed = private.forward_mode() or private.transforms_active()
        if not transformed and not (torch.is_grad_enabled() and has_learning_tensors(self.module)):
            return self.plain(*args, **kwargs)
        if private.is_exporting():
            raise RoutingError(
                "an exported program has no backward of its own, so whoever trained it would train it unrouted. "
                "Export without labels or under torch.no_grad()."
            )
        if torch.compiler.is_compiling() and private.FUNCTIONS_COMPILE:
            from ..autograd import _dynamo  # noqa: F401, PLC0415  # runs while Dynamo traces: see there
        layer = known_layer(self.module) if self.previous is None else None
        if layer is None or kwargs or len(args) != 1 or any(mask.path not in ((), (0,)) for mask in readers):
            return routed_run(self, (args, kwargs), writers, readers)
        for mask in [*writers, *readers]:  # any() of calls is not traced before torch 2.12
            if not _is_plain_in(layer, self.module, mask.parameters):
                return routed_run(self, (args, kwargs), writers, readers)
        return _apply(layer, self.plain, args[0], writers, readers)


def _is_plain_in(layer: Layer, module: nn.Module, names: tuple[str, ...] | None) -> bool:
    """Whether the parameters of these names are what a known layer computes with, and not what it is computed of."""
    if names is None:
        return True
    used = ["weight"] if layer.bias is None else ["weight", "bias"]
    held = [name for name, _ in module.named_parameters(recurse=False)]
    return set(held).issuperset([*names, *used])


def _masks_of(hooks: list[MaskSource]) -> list[SiteMask]:
    masks = []
    for hook in hooks:  # a comprehension would need :=, which Dynamo does not read here
        mask = hook.parameter_mask()
        if mask is not None:
            masks.append(mask)
    return masks


def stand_in(module: nn.Module) -> OwnForward | None:
    """What stands in for the module's forward: itself, or compiled. None where something else does."""
    forward = module.__dict__.get("forward")
    while forward is not None and not isinstance(forward, OwnForward):
        owner = getattr(forward, "__self__", None)  # of a bound `__call__`
        forward = owner if isinstance(owner, OwnForward) else private.before_compiling(forward)
    return forward


# ------------------------------------------------------------------ layers that are known


def _apply(
    layer: Layer, run: Callable[..., Any], x: Tensor, writers: list[SiteMask], readers: list[SiteMask]
) -> Tensor:
    for mask in readers:
        mask.check(x)
    plain = type(x) in (Tensor, nn.Parameter) and type(layer.weight) in (Tensor, nn.Parameter)
    plain = plain or (private.is_distributed(x) and private.is_distributed(layer.weight))
    if not plain or torch.compiler.is_compiling() or private.transforms_active() or private.forward_mode():
        for mask in (*writers, *readers):
            mask.demand_labels(TRANSFORMED)
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
        with _without_autocast(grad.device):
            narrow_x, narrow_weight = _of_dtype(x, grad), _of_dtype(weight, grad)
            grad_x = _of_dtype(layer.grad_input(grad, narrow_x, narrow_weight), x) if needs[0] else None
            own: tuple[Tensor | None, ...] = (None, None)
            if needs[1] or needs[2]:
                narrow_bias = None if bias is None else _of_dtype(bias, grad)
                own = _masked_gradients(ctx, grad, narrow_x, narrow_weight, narrow_bias)
        grad_weight, grad_bias = (
            _of_dtype(gradient, parameter) if gradient is not None and needed else None
            for gradient, parameter, needed in zip(own, (weight, bias), needs[1:], strict=True)
        )
        return (None, grad_x, grad_weight, grad_bias, *nothing)


def _without_autocast(device: torch.device) -> contextlib.AbstractContextManager[object]:
    kind = autocast_device(device)
    if not torch.is_autocast_enabled(kind):  # the common case, which costs nothing
        return contextlib.nullcontext()
    return torch.autocast(kind, enabled=False)


def _of_dtype(tensor: Tensor, like: Tensor) -> Tensor:
    return tensor if tensor.dtype == like.dtype else tensor.to(like.dtype)


def _masked_gradients(
    ctx: Any, grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None
) -> tuple[Tensor | None, Tensor | None]:
    """The gradients of a layer's weight and bias, each masked by the sites that are for it."""
    layer, readers = ctx.layer, those_for(ctx.readers, "weight")
    masked, seen = _on(those_for(ctx.writers, "weight"), grad), x
    if not layer.reads_what_it_writes:
        seen = _on(readers, seen)
    if not tell_apart(ctx.writers, "weight", "bias"):
        own: tuple[Tensor | None, Tensor | None] = layer.grad_own(masked, seen, weight, bias)
    else:
        alone = layer.grad_own(masked, seen, weight, None)[0] if ctx.needs_input_grad[2] else None
        of_bias = _on(those_for(ctx.writers, "bias"), grad)
        own = alone, None if bias is None else layer.grad_bias(of_bias, x, weight, bias)
    if readers and layer.reads_what_it_writes:
        own = layer.grad_own(_on(readers, masked), seen, weight, None)[0], own[1]
    return own


def _on(masks: list[SiteMask], x: Tensor) -> Tensor:
    for mask in masks:
        x = mask.on(x)
    return x


def _composed_gradients(
    ctx: Any, grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None
) -> tuple[Tensor | None, ...]:
    for mask in (*ctx.writers, *ctx.readers):
        mask.note_backward()
    create_graph = torch.is_grad_enabled()
    with torch.enable_grad(), _without_autocast(grad.device):
        # Of views: hooks on the tensors themselves see these gradients when backward is there.
        inputs: list[Any] = [None if tensor is None else tensor.view_as(tensor) for tensor in (x, weight, bias)]
        y = ctx.layer.composed(*inputs, ctx.writers, ctx.readers)
    wanted = [i for i, needed in enumerate(ctx.needs_input_grad[1:4]) if needed]
    found = torch.autograd.grad(
        y, [inputs[i] for i in wanted], grad.to(y.dtype), create_graph=create_graph, allow_unused=True
    )
    gradients: list[Tensor | None] = [None, None, None]
    for i, gradient in zip(wanted, found, strict=True):
        gradients[i] = gradient
    return tuple(gradients)
