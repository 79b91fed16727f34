"""`HeldEntries`: some entries of one parameter, by rows or by a mask, found in its values, gradient and state."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import _torch_private as private
from ..errors import UsageError
from ..spec._route import canonical_index, units_of
from ._slices import Block, index_of, local, part, put, runs_of, take


class HeldEntries:
    """Entries of one parameter.

    Args:
        parameter: The parameter; of a distributed one, each process finds the part that it holds.
        given: Rows of the whole parameter (an integer, a slice, a sequence of integers or an integer tensor), or a bool
            mask of its shape or of a leading part of its shape, which then is one of rows.

    Attributes:
        shape: The shape of the parameter.
        closed_rows: The rows that are held, as consecutive ones. None where not rows are held, or too many pieces.

    Raises:
        UsageError: It is none of these, or does not fit the parameter.
    """

    def __init__(self, parameter: Tensor, given: Any) -> None:
        self.shape = parameter.shape
        rows, mask = _checked(parameter, given)
        if mask is not None:
            # Several times faster than a mask, where it comes to the same. Of a scalar there are no rows.
            flat = mask.reshape(len(mask), -1) if mask.ndim and mask.numel() else None
            if flat is not None and bool((flat.all(1) == flat.any(1)).all()):
                rows, mask = flat.any(1).nonzero().squeeze(1), None
        self._held_rows: Tensor | None = None  # bool [rows held here], for sparse gradients
        self._mask: Tensor | None = None
        self._block: Block | None = None
        self.closed_rows: list[slice] | None = None
        if mask is not None:
            for dim in range(mask.ndim):
                start, stop = part(parameter, dim)
                mask = mask.narrow(dim, start, stop - start)
            self._mask = mask.to(parameter.device, copy=True)
        elif rows is not None:
            start, stop = part(parameter, 0)
            here = rows[(rows >= start) & (rows < stop)] - start
            index = index_of(here, parameter.device)
            self.closed_rows = runs_of(torch.unique(here))
            self._block = None if index is None else [(0, index)]
            self._held_rows = torch.zeros(stop - start, dtype=torch.bool, device=parameter.device)
            self._held_rows[here.to(parameter.device)] = True

    def has_rows_of(self, tensor: Tensor) -> bool:
        """Whether whole rows are held, and a tensor of another shape than the parameter's has an entry for each row."""
        return self._mask is None and tensor.ndim == len(self.shape) and tensor.shape[:1] == self.shape[:1]

    def take(self, tensor: Tensor) -> Tensor | None:
        """A copy of what `put` needs to restore them in this tensor; None where no entry is held here."""
        if self._mask is not None:
            return local(tensor).clone()
        return None if self._block is None else take(local(tensor), self._block)

    def put(self, tensor: Tensor, before: Tensor | None) -> None:
        """Write the entries back that were taken from this tensor."""
        if before is None:
            return
        here = local(tensor)
        if self._mask is not None:
            torch.where(self._mask, before, here, out=here)
        elif self._block is not None:
            put(here, self._block, before)

    def zero_gradient(self, parameter: Tensor) -> None:
        """Make the gradient 0 at these entries; of a sparse one, leave the rows out of which all is held."""
        gradient = parameter.grad
        if gradient is None:
            return
        if gradient.is_sparse:
            parameter.grad = self._of_sparse(gradient)
        else:
            self._zero(local(gradient))

    def zeroed(self, gradient: Tensor) -> Tensor:
        """The same of a copy."""
        if gradient.is_sparse:
            return self._of_sparse(gradient)
        gradient = gradient.clone()
        self._zero(local(gradient))
        return gradient

    def _zero(self, dense: Tensor) -> None:
        if self._mask is not None:
            dense.masked_fill_(self._mask, 0)
        elif self._block is not None:
            _, index = self._block[0]
            if isinstance(index, slice):
                dense[index].zero_()
            else:
                dense.index_fill_(0, index, 0)

    def _of_sparse(self, gradient: Tensor) -> Tensor:
        gradient = gradient.coalesce()
        if gradient.sparse_dim() != 1:
            raise UsageError(
                f"a sparse gradient with {gradient.sparse_dim()} sparse dimensions cannot be held still: expected one "
                "of whole rows, as nn.Embedding(sparse=True) makes it."
            )
        rows, values = gradient.indices()[0], gradient.values()
        if self._mask is not None:
            mask = self._mask[rows]
            values, keep = values.masked_fill(mask, 0), ~mask.flatten(1).all(1)
        elif self._held_rows is not None:
            keep = ~self._held_rows[rows]
        else:
            return gradient
        return torch.sparse_coo_tensor(rows[keep][None], values[keep], gradient.shape, check_invariants=False)


class ZeroHeldGradient:
    """A hook on a parameter that makes its gradient 0 at held entries, as soon as it is there: before it is clipped."""

    def __init__(self, entries: HeldEntries) -> None:
        self.entries = entries

    @torch.no_grad()
    def __call__(self, parameter: Tensor) -> None:
        if parameter.shape == self.entries.shape:
            self.entries.zero_gradient(parameter)


def is_held(parameter: Tensor) -> bool:
    """Whether a `Hold` holds entries of a parameter."""
    return any(isinstance(hook, ZeroHeldGradient) for hook in private.hooks_after_accumulation(parameter))


def has_other_hooks(parameter: Tensor) -> bool:
    """Whether others than a `Hold` have hooks that run when a parameter's gradient is there."""
    return not all(isinstance(hook, ZeroHeldGradient) for hook in private.hooks_after_accumulation(parameter))


@torch.no_grad()
def without_held(parameter: Tensor, gradient: Tensor) -> Tensor:
    """A gradient of a parameter, plain and as autograd returned it, as it would be accumulated: 0 where it is held."""
    for hook in private.hooks_after_accumulation(parameter):
        if isinstance(hook, ZeroHeldGradient) and parameter.shape == hook.entries.shape:
            gradient = hook.entries.zeroed(gradient)
    return gradient


def _checked(parameter: Tensor, given: Any) -> tuple[Tensor | None, Tensor | None]:
    """The rows, int64, or the mask, bool of the parameter's shape, both on the CPU or where the mask was."""
    shape = tuple(parameter.shape)
    if isinstance(given, Tensor) and type(given) is not Tensor:
        raise UsageError(f"a mask must be a plain tensor of the whole parameter's shape; got a {type(given).__name__}.")
    mask = given if isinstance(given, Tensor) and given.dtype == torch.bool else _list_of_bools(given)
    if mask is not None:
        leading = tuple(mask.shape)
        if leading != shape[: mask.ndim] or (mask.ndim == 0 and shape):
            raise UsageError(
                f"a bool mask of shape {leading} does not fit a parameter of shape {shape}: expected its whole shape, "
                f"or the beginning of it, such as {shape[:1]} for whole rows."
            )
        return None, mask.reshape(leading + (1,) * (len(shape) - mask.ndim)).expand(shape)
    if not shape:
        raise UsageError("a parameter without dimensions has no rows: hold it by a bool tensor without dimensions.")
    try:
        rows = units_of(canonical_index(given), shape[0])
    except ValueError as error:
        raise UsageError(
            f"these rows do not fit a parameter of shape {shape}: {error} Expected a bool mask of that shape, or rows: "
            f"an integer, a slice, or integers from 0 to {shape[0] - 1}."
        ) from None
    return torch.tensor(rows, dtype=torch.int64, device="cpu"), None


def _list_of_bools(given: Any) -> Tensor | None:
    """A mask that came as a nested list or an array."""
    if isinstance(given, int | slice | str | Tensor):
        return None
    try:
        mask = torch.as_tensor(given, device="cpu")
    except (TypeError, ValueError, RuntimeError):
        return None
    return mask if mask.dtype == torch.bool else None
