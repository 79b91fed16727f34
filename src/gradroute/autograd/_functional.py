"""`RouteMask` and `route`: the only file that touches autograd."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from .. import _torch_private as private
from ..errors import RoutingError
from ..spec._deferred_mask import BatchMask
from ..spec._masks import INTEGER_OF_SIZE, Kept, Mask, align, refuse_changed
from ..spec._spec import RoutingSpec
from ._distributed import HeldPart
from ._functions import masked, route_by

SMALL = 2**14
"""Up to this many elements, the number of steps is what routing costs, and not memory: see `_RouteSmall`."""

TRANSFORMED = (
    "torch.func, torch.compile and forward-mode differentiation take the mask into what they make of it. Run it in a "
    "`with router(labels)` block, or without them"
)
"""Why a mask whose labels come late cannot be had there."""

_ZEROS = {
    dtype: torch.zeros((), dtype=dtype, device="cpu")
    for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16)
}


class _RouteBatch(Function):
    """Forward: identity, but for silent units. Backward: multiplies the gradient by the mask of the batch's labels.

    What `route` runs in plain eager mode: a Function in the classic style costs half of one with `setup_context`, and
    it can take the `Mask` itself, so that no mask tensor exists before backward. The mask is kept as an attribute and
    not by `save_for_backward` on purpose: activation checkpointing drops and recomputes what is saved there, by when
    the router may hold other labels; an attribute stays with the forward pass that made it.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, mask: BatchMask, dim: int, replacing: bool) -> Tensor:
        ctx.mask = mask
        ctx.dim = dim
        ctx.set_materialize_grads(False)
        if mask.silences:  # where the mask is 0, so that the backward pass need not know of them
            return silenced(x, mask, dim)
        return x.detach() if replacing else x  # of which autograd makes a view

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, None, None, None]:
        return None if grad is None else masked_by(grad, ctx.mask, ctx.dim), None, None, None

    @staticmethod
    def jvp(ctx: Any, x_tangent: Tensor, *_: Any) -> Tensor:
        return masked_by(x_tangent, ctx.mask, ctx.dim)


class _RouteSmall(Function):
    """Forward: identity. Backward: multiplies the gradient by a mask that the forward pass looked up.

    What is small is routed so: the look-up is what checks the labels, it is done once for all sites of a block, and it
    leaves one operation to the backward pass. Kept as an attribute for the same reason as in `_RouteBatch`.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, kept: Kept, replacing: bool) -> Tensor:
        ctx.kept = kept
        ctx.set_materialize_grads(False)
        return x.detach() if replacing else x

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, None, None]:
        if grad is None:
            return None, None, None
        keep, labels, version, mask = ctx.kept
        if not torch.compiler.is_compiling():
            if mask is not None:
                mask.applied.backward = private.backward_number()
            if private.writes(labels) != version:
                refuse_changed(labels, version)
            if type(grad) is Tensor and grad.layout is torch.strided:  # `masked`, in few steps
                return torch.where(keep, grad, _ZEROS[grad.dtype]), None, None
        return masked(grad, keep), None, None


def route(x: Tensor, labels: Tensor, spec: RoutingSpec, *, dim: int = -1) -> Tensor:
    """Let each example of x teach, through x, only the units that its label may teach.

    Forward: identity; nothing is copied. Backward: the gradient is multiplied by ``spec.mask(labels)`` along `dim`,
    and is exactly 0 where that is 0. Only if the spec has silent units is there a new tensor, in which those of
    ``spec.silent_mask(labels)`` are exactly 0, whatever x holds there.

    Args:
        x: Tensor of any floating dtype, with ``spec.width`` units along `dim`.
        labels: What each example is, or each token, or each position. The shape (without the last dimension of bool
            and floating labels) is a leading part of x's shape with `dim` taken out: for x [B, T, D], (B,) or (B, T);
            for x [B, C, H, W] and ``dim=1``, (B,), (B, H) or (B, H, W). By dtype:

            - integer: the spec's own keys where these are all integers, and ids from `RoutingSpec.encode` where not;
              -1 is unlabeled. A single integer (shape ()) labels the whole batch.
            - bool [..., n_labels]: multi-label. Per unit, the weight of largest magnitude among the set labels; a row
              with none set is unlabeled.
            - floating [..., n_labels]: a mixture, the weighted sum of the routes, so that what two labels of weight 1
              both teach has weight 2: sets of labels, such as the targets of a binary cross entropy, must be bool.
              Floats that hold zeros and ones alone, several ones in a row, warn once for a spec. A row of zeros stops
              the gradient.
        spec: Which units each label may teach.
        dim: The dimension of x that holds the units.

    Returns:
        A view of x with the same values. An in-place operation on it raises, since it would change x too. With silent
        units a tensor of its own.

    Raises:
        LabelError: The labels do not fit the spec or x, or a label is unknown.
        RoutingError: x is not floating.

    Examples:
        >>> z = torch.ones(2, 3, requires_grad=True)
        >>> spec = RoutingSpec.one_per_label(3)
        >>> route(z, torch.tensor([2, 0]), spec).sum().backward()
        >>> z.grad
        tensor([[0., 0., 1.],
                [1., 0., 0.]])

    References:
        Cloud et al., 2024 (arXiv:2410.04332), Algorithm 1.
    """
    if _is_small(x, dim):
        kept = spec.masks.look_up(labels, x.shape)
        if kept is not None and kept[0].device == x.device:
            return _RouteSmall.apply(x, kept, False)  # type: ignore[no-any-return]
    return route_mask(x, spec.masks.resolve(labels), dim, replacing=False)


def _is_small(x: Tensor, dim: int) -> bool:
    """Whether few steps are all that routing costs: a small tensor that learns, its units last, and all is plain."""
    return (
        private.is_eager()
        and type(x) is Tensor
        and x.requires_grad
        and torch.is_grad_enabled()
        and not x.is_nested
        and x.numel() <= SMALL
        and x.dtype in _ZEROS
        and (dim == -1 or dim == x.ndim - 1)
    )


def route_mask(x: Tensor, mask: BatchMask, dim: int, *, replacing: bool, broadcast: bool = False) -> Tensor:
    """`route` with labels already resolved.

    Silent units are off. With ``replacing=True`` the result shares x's memory without being a view of it, so that later
    in-place operations work on it: right where the result replaces x, as in a hook. With ``broadcast=True`` a mask of
    one unit fits any number of them.
    """
    if _is_small(x, dim):
        kept = mask.look_up(x.shape)
        if kept is not None and kept[0].device == x.device:
            return _RouteSmall.apply(x, kept, replacing)  # type: ignore[no-any-return]
    # The common case, in few steps.
    if private.is_eager() and type(x) is Tensor and x.dtype in _ZEROS and not x.is_nested:
        dim = mask.check_fits(x.shape, dim, broadcast=broadcast)
        mask.check_device(x.device)
        if torch.is_grad_enabled() and x.requires_grad:
            return _RouteBatch.apply(x, mask, dim, replacing)  # type: ignore[no-any-return]
        return silenced(x, mask, dim)
    return _route_any(x, mask, dim, replacing=replacing, broadcast=broadcast)


def _route_any(x: Tensor, mask: BatchMask, dim: int, *, replacing: bool, broadcast: bool) -> Tensor:
    if not (x.is_floating_point() or x.is_complex()):
        raise RoutingError(f"only floating tensors carry gradients to route; got {x.dtype}.")
    if x.is_nested and mask.silences and not (torch.is_grad_enabled() and x.requires_grad):
        return silenced(x, mask, dim, broadcast=broadcast)
    if x.is_nested:
        raise RoutingError("nested tensors cannot be routed: route their values(), with one label for each of them.")
    dim = mask.check_fits(x.shape, dim, broadcast=broadcast)
    if private.is_distributed(x) and not torch.compiler.is_compiling():
        HeldPart(x)  # of which gradients will be: what cannot be masked is refused here
    mask.check_device(x.device)
    if torch.compiler.is_compiling():
        if private.is_exporting():
            if torch.is_grad_enabled() and x.requires_grad:
                raise RoutingError(
                    "an exported program has no backward of its own, so whoever trained it would train it unrouted. "
                    "Export without labels or under torch.no_grad()."
                )
            return silenced(x, mask, dim)
        if private.FUNCTIONS_COMPILE:
            from . import _dynamo  # noqa: F401, PLC0415  # runs while Dynamo traces: see there
        return _route_transformed(x, mask.known_in_forward(TRANSFORMED), dim, replacing)
    if private.transforms_active():
        return _route_transformed(x, mask.known_in_forward(TRANSFORMED), dim, replacing)
    if not (torch.is_grad_enabled() and x.requires_grad) and not private.forward_mode():
        return silenced(x, mask, dim)
    if private.forward_mode():
        mask = mask.known_in_forward(TRANSFORMED)
    # Outside torch.func, forward-mode differentiation demands that the tangent of a view be a view, and ours is none.
    return _RouteBatch.apply(x, mask, dim, replacing or private.forward_mode())  # type: ignore[no-any-return]


def _route_transformed(x: Tensor, mask: Mask, dim: int, replacing: bool) -> Tensor:
    # A bool mask where possible: it is a quarter of the size. The compiler saves labels and recomputes it.
    dtype = torch.bool if mask.is_hard else torch.float32
    routed = align(mask.tensor(dtype, x.device), x.ndim, dim)
    # Silent units first: what is routed then is a new tensor, that nobody else holds.
    return route_by(silenced(x, mask, dim), routed, replacing=replacing or mask.silences)


def silenced(x: Tensor, mask: BatchMask, dim: int, *, broadcast: bool = False) -> Tensor:
    """X with the silent units of a batch exactly 0, in a new tensor; x itself where the spec has none.

    With ``broadcast=True`` a mask of one unit fits any number of them.
    """
    if not mask.silences:
        return x
    mask = mask.known_in_forward("its silent units are off there")
    if x.is_nested:  # which the fast path of nn.TransformerEncoder makes of batches that are padded at the end
        parts = []
        for i, one in enumerate(x.unbind()):
            own, batch = mask.of_example(i, len(one), of=x.size(0)), one.unsqueeze(0)
            parts.append(silenced(batch, own, own.check_fits(batch.shape, dim, broadcast=broadcast)).squeeze(0))
        return torch.nested.as_nested_tensor(parts, layout=x.layout)
    off = align(mask.off(x.device), x.ndim, dim)
    return masked(x, ~off) if private.is_distributed(x) else torch.where(off, 0, x)


def masked_by(grad: Tensor, mask: BatchMask, dim: int) -> Tensor:
    """The gradient times the mask of a batch: as `_masked`, but at the cost of one multiplication where possible."""
    batch, mask = mask, mask.known()
    compiling = torch.compiler.is_compiling()
    if not compiling:
        batch.applied.backward = private.backward_number()
    if private.is_distributed(grad) and not (torch.is_grad_enabled() or compiling):
        part = HeldPart(grad)
        of_part = mask.part(dim, part.starts, part.local.shape)
        return part.replaced_by(masked_by(part.local, of_part, dim))
    if torch.is_grad_enabled() or not _is_plain(grad):  # grad mode inside backward: the caller wants second derivatives
        dtype = torch.bool if mask.is_hard else grad.real.dtype
        return masked(grad, align(mask.tensor(dtype, grad.device), grad.ndim, dim))
    if not mask.is_hard:
        grad = _combine(torch.mul, mask.tensor(grad.dtype, grad.device), grad, dim)
        if not mask.has_zero:
            return grad
    return _combine(torch.bitwise_and, mask.bits(grad.dtype, grad.device), grad, dim)


def _is_plain(grad: Tensor) -> bool:
    """Whether a gradient is ordinary memory that may be read as integers."""
    if torch.compiler.is_compiling():  # compiled autograd traces the backward pass, too
        return False
    if type(grad) is not Tensor or grad.layout != torch.strided or not grad.is_floating_point() or grad.is_neg():
        return False
    return not (private.is_wrapped(grad) or private.is_batch_of_gradients(grad))


def _combine(operation: Any, factor: Tensor, grad: Tensor, dim: int) -> Tensor:
    """``operation(factor, grad)`` into the factor's own memory where it is as large as the gradient, else into new."""
    aligned = align(factor, grad.ndim, dim)
    result = aligned if aligned.shape == grad.shape and dim == grad.ndim - 1 else torch.empty_like(grad)
    operands = (aligned, grad, result)
    if operation is torch.bitwise_and:
        integer = INTEGER_OF_SIZE[grad.dtype.itemsize]
        operands = (aligned.view(integer), grad.view(integer), result.view(integer))
    operation(*operands[:2], out=operands[2])
    return result
