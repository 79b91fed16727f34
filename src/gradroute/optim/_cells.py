"""Units of a parameter as bool cells: which are open, which belong together, and their entries in tensors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from ..errors import UsageError
from ._slices import Block, index_of, put, take

Along: TypeAlias = "list[dict[int | None, tuple[int, ...]]]"
"""Of a parameter, the blocks of entries of which each is closed where none of these groups of units was taught."""


@dataclass(eq=False)
class Cohort:
    """Units of one parameter that took all their steps together: bool, as long as the parameter along its units' dims.

    Attributes:
        cells: Which units, bool, on the CPU: along a dimension that counts units of the parameter's size, else of 1.
        entries: Their entries in the parameter: a block, or a mask where they are no block.
    """

    cells: Tensor
    entries: Block | Tensor


def cohort_of(parameter: Tensor, cells: Tensor) -> Cohort:
    """The units, with their entries: a block, if they are all combinations of some indices along some dimensions."""
    block: Block = []
    combinations = 1
    for dim, size in enumerate(cells.shape):
        inside = cells.movedim(dim, 0).reshape(size, -1).any(1)
        combinations *= int(inside.sum())
        if not bool(inside.all()):
            index = index_of(inside.nonzero().squeeze(1), parameter.device)
            block += [(dim, index)] if index is not None else []
    if combinations == int(cells.sum()):
        return Cohort(cells, block)
    return Cohort(cells, cells.expand(parameter.shape).to(parameter.device))


def taught_together(parameter: Tensor, along: Along, tables: list[Tensor]) -> list[Tensor]:
    """The units that are always taught together, as cells: those of which each label gives all the same weight.

    Args:
        parameter: The parameter.
        along: What closes its entries.
        tables: Of each group of units, the weights that labels give them: [n, width].
    """
    numbers = torch.zeros(open_cells(parameter, along, []).shape, dtype=torch.int64, device="cpu")
    for dim, groups in {(dim, groups) for each in along for dim, groups in each.items() if dim is not None}:
        for group in groups:
            alike = tables[group].unique(dim=1, return_inverse=True)[1]  # type: ignore[no-untyped-call]
            pairs = numbers * len(alike) + alike.view([-1 if d == dim else 1 for d in range(parameter.ndim)])
            numbers = pairs.flatten().unique(return_inverse=True)[1].view(pairs.shape)
    return [numbers == number for number in range(int(numbers.max()) + 1)]


def open_cells(parameter: Tensor, along: Along, taught: list[Tensor]) -> Tensor:
    """Which units are open: bool, on the CPU, of the parameter's size along its units' dims and of 1 along the others.

    Without `taught` it is of the same shape, and all are.
    """
    dims = {dim for each in along for dim in each}
    shape = [size if dim in dims else 1 for dim, size in enumerate(parameter.shape)]
    closed = torch.zeros(shape, dtype=torch.bool, device="cpu")
    for each in along if taught else ():
        here = torch.ones(shape, dtype=torch.bool, device="cpu")
        for dim, groups in each.items():
            untaught = ~torch.stack([taught[group] for group in groups]).any(0).cpu()
            here &= untaught.view([-1 if d == dim else 1 for d in range(parameter.ndim)])
        closed |= here
    return ~closed


def _is_view(tensor: Tensor, entries: Block | Tensor) -> bool:
    """Whether a part is given as it lies in memory, so that what is written to it need not be put back."""
    if isinstance(entries, Tensor) or not tensor.is_contiguous():
        return False
    return not entries or (len(entries) == 1 and entries[0][0] == 0 and isinstance(entries[0][1], slice))


def part_of(tensor: Tensor, entries: Block | Tensor) -> Tensor:
    """The part itself, where it lies in one piece, or a copy."""
    if isinstance(entries, Tensor):
        return tensor[entries]
    if _is_view(tensor, entries):
        return tensor[entries[0][1]] if entries else tensor
    return take(tensor, [(dim, _on(index, tensor.device)) for dim, index in entries]).contiguous()


def put_part(tensor: Tensor, entries: Block | Tensor, values: Tensor) -> None:
    """Write a part back, unless these values are the part itself."""
    if isinstance(entries, Tensor):
        tensor[entries] = values
    elif values.data_ptr() != _start(tensor, entries):
        put(tensor, [(dim, _on(index, tensor.device)) for dim, index in entries], values)


def _start(tensor: Tensor, entries: Block) -> int | None:
    return part_of(tensor, entries).data_ptr() if _is_view(tensor, entries) else None


def _on(index: Tensor | slice, device: torch.device) -> Tensor | slice:
    return index.to(device) if isinstance(index, Tensor) else index


def part_of_gradient(gradient: Tensor, entries: Block | Tensor) -> Tensor:
    """The part of a gradient, which may be a sparse one of rows."""
    if not gradient.is_sparse:
        return part_of(gradient, entries)
    if isinstance(entries, Tensor):
        raise UsageError(
            "a sparse gradient cannot be cut up by units of both rows and columns: use sparse=False, or sites along "
            "one dimension of the parameter."
        )
    gradient = gradient.coalesce()
    for dim, index in entries:
        units = torch.arange(index.start, index.stop) if isinstance(index, slice) else index
        gradient = gradient.index_select(dim, units.to(gradient.device))
    return gradient
