"""The autograd Functions: `RouteMask`, and `Sum`. Both also run where code is compiled or transformed."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from .. import _torch_private as private
from ..errors import RoutingError
from . import _operations as operations
from ._distributed import HeldPart, on_mesh_of


class RouteMask(Function):
    """Forward: identity. Backward: multiplies the gradient by the mask.

    ``RouteMask.apply(x, mask)`` with x of any floating dtype and shape, and a mask, floating or bool, that broadcasts
    to x's shape. The gradient is exactly 0 where the mask is 0, also where the incoming gradient is inf or NaN. The
    tangent of forward-mode differentiation is multiplied by the mask too, so that both modes agree.

    The result is a view of x, as of ``x.view_as(x)``: nothing is copied. It composes with `torch.func` transforms,
    `torch.compile`, and both at once.

    Raises:
        RoutingError: The mask does not broadcast to x's shape.

    Examples:
        >>> x = torch.ones(2, 3, requires_grad=True)
        >>> RouteMask.apply(x, torch.tensor([1.0, 0.0, 0.5])).sum().backward()
        >>> x.grad
        tensor([[1.0000, 0.0000, 0.5000],
                [1.0000, 0.0000, 0.5000]])

    References:
        Cloud et al., 2024 (arXiv:2410.04332), Algorithm 1, in the form of a mask on gradients.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, mask: Tensor) -> Tensor:  # the class says it, for all of these
        if torch.compiler.is_dynamo_compiling():
            # Dynamo inlines this body only where `_dynamo` was not imported first, and what it makes of an inlined
            # Function loses the mask without a word inside torch.func transforms.
            raise RoutingError(
                "to compile RouteMask.apply, `import gradroute.autograd._dynamo` first (torch 2.12 or later), or use "
                "gradroute.route."
            )
        sizes = zip(reversed(mask.shape), reversed(x.shape), strict=False)
        if mask.ndim > x.ndim or any(m not in (1, n) for m, n in sizes):
            raise RoutingError(f"a mask of shape {tuple(mask.shape)} does not broadcast to x's shape {tuple(x.shape)}.")
        return x.view_as(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(inputs[1])
        ctx.save_for_forward(inputs[1])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return masked(grad, ctx.saved_tensors[0]), None

    @staticmethod
    def jvp(ctx: Any, x_tangent: Tensor, _: Any) -> Tensor:
        return masked(x_tangent, ctx.saved_tensors[0])


class ReplacingRouteMask(RouteMask):
    """`RouteMask` for a result that replaces x: in-place operations work on it, since it is no view of x."""

    @staticmethod
    def forward(x: Tensor, mask: Tensor) -> Tensor:
        return x.detach()


def route_by(x: Tensor, mask: Tensor, *, replacing: bool = False) -> Tensor:
    """x, whose gradient is multiplied by a mask; with ``replacing=True`` it is no view of x."""
    if torch.compiler.is_compiling() and not private.FUNCTIONS_COMPILE:
        return operations.masked(x, mask, replacing=replacing)
    function = ReplacingRouteMask if replacing else RouteMask
    return function.apply(x, mask)  # type: ignore[no-any-return]


def sum_of(value: Tensor, *parts: Tensor) -> Tensor:
    """A value, whose gradient goes whole to each of the parts."""
    if torch.compiler.is_compiling() and not private.FUNCTIONS_COMPILE:
        return operations.summed(value, *parts)
    return Sum.apply(value, *parts)  # type: ignore[no-any-return]


def masked(grad: Tensor, mask: Tensor) -> Tensor:
    """The gradient times a mask that broadcasts to it: differentiable, and right under every transform."""
    if private.is_distributed(grad):
        if not torch.compiler.is_dynamo_compiling():
            return _MaskedParts.apply(grad, mask)  # type: ignore[no-any-return]
        mask = on_mesh_of(grad, mask)
    if grad.layout == torch.sparse_coo:
        grad = grad.coalesce()
        kept = mask.expand(grad.shape).sparse_mask(grad)
        values = masked(grad.values(), kept.values())
        return torch.sparse_coo_tensor(grad.indices(), values, grad.shape, is_coalesced=True, check_invariants=False)
    if mask.dtype == torch.bool:
        return torch.where(mask, grad, 0)
    return torch.where(mask != 0, grad * mask.to(grad.dtype), 0)


class _MaskedParts(Function):
    """Forward: a DTensor times a mask, of which each process multiplies what it holds. Backward: the gradient, too."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, mask: Tensor) -> Tensor:
        ctx.save_for_backward(mask)
        part = HeldPart(x)
        return part.replaced_by(masked(part.local, part.cut(mask)))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _MaskedParts.apply(grad, ctx.saved_tensors[0]), None


class Sum(Function):
    """Forward: the first argument, a value. Backward: the gradient goes whole to each of the others, the parts."""

    generate_vmap_rule = True

    @staticmethod
    def forward(value: Tensor, *parts: Tensor) -> Tensor:  # the class says it, for all of these
        return value.detach()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.n_parts = len(inputs) - 1

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return (None, *[grad] * ctx.n_parts)

    @staticmethod
    def jvp(ctx: Any, _: Any, *tangents: Tensor | None) -> Tensor | None:
        found = [tangent for tangent in tangents if tangent is not None]
        total = found[0]
        for tangent in found[1:]:
            total = total + tangent
        return total
