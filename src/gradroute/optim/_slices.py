"""Takes the entries that belong to frozen units out of a parameter and its state, and puts them back."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Mapping
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from ..errors import UsageError

# Entries of a tensor: the product of these indices along these dimensions, and all there is along the others. A slice
# where the indices are consecutive, which copies several times faster.
Block: TypeAlias = "list[tuple[int, Tensor | slice]]"


class FrozenBlocks:
    """Finds the entries of parameters that are frozen in one step: those of units that were not taught.

    Args:
        taught: For each group of sites, which units were taught: bool [width].
    """

    def __init__(self, taught: list[Tensor]) -> None:
        self._taught = taught
        self._untaught: dict[tuple[int, ...], Tensor] = {}
        self._indices: dict[tuple[object, ...], Tensor | slice | None] = {}
        self._runs: dict[tuple[int, ...], list[slice] | None] = {}

    def __call__(self, parameter: Tensor, along: Mapping[int | None, tuple[int, ...]]) -> Block | None:
        """The entries of a parameter, of a distributed one those here, that nobody taught; None if there are none.

        The empty block is the whole parameter.
        """
        block: Block = []
        for dim, groups in along.items():
            units = self._untaught_of(groups)
            if not len(units):
                return None
            if dim is None or len(units) == parameter.shape[dim]:
                continue
            start, stop = part(parameter, dim)
            key = (groups, start, stop, parameter.device)
            if key not in self._indices:
                self._indices[key] = index_of(units[(units >= start) & (units < stop)] - start, parameter.device)
            index = self._indices[key]
            if index is None:
                return None
            block.append((dim, index))
        return block

    def closed_rows(self, along: Mapping[int | None, tuple[int, ...]]) -> list[slice] | None:
        """The same where it is of whole rows of a parameter that is not distributed, as consecutive rows.

        None where it is not, and where these are so many that nobody would step what is between them by itself.
        """
        if list(along) != [0]:
            return None
        groups = along[0]
        if groups not in self._runs:
            self._runs[groups] = runs_of(self._untaught_of(groups))
        return self._runs[groups]

    def _untaught_of(self, groups: tuple[int, ...]) -> Tensor:
        if groups not in self._untaught:
            taught = torch.stack([self._taught[group] for group in groups]).any(0)
            self._untaught[groups] = (~taught).nonzero().squeeze(1)
        return self._untaught[groups]


MOST_RUNS = 16
"""So many consecutive pieces of rows, at most, are treated one by one."""


def runs_of(units: Tensor) -> list[slice] | None:
    """Increasing indices, on the CPU, as consecutive slices; None where these are too many."""
    if not len(units):
        return []
    ends = (units.diff() != 1).nonzero().squeeze(1) + 1
    if len(ends) >= MOST_RUNS:
        return None
    begins = [0, *ends.tolist(), len(units)]
    return [slice(int(units[i]), int(units[j - 1]) + 1) for i, j in itertools.pairwise(begins)]


def index_of(units: Tensor, device: torch.device) -> Tensor | slice | None:
    """Increasing indices as a slice where they are consecutive; None for no index."""
    if not len(units):
        return None
    first, last = int(units[0]), int(units[-1])
    return slice(first, last + 1) if last - first + 1 == len(units) else units.to(device)


def take(tensor: Tensor, block: Block) -> Tensor:
    """A copy of a block."""
    copied = False
    for dim, index in block:
        if isinstance(index, slice):
            tensor = tensor.narrow(dim, index.start, index.stop - index.start)
        else:
            tensor, copied = tensor.index_select(dim, index), True
    return tensor if copied else tensor.clone()


def put(tensor: Tensor, block: Block, values: Tensor) -> None:
    """Write a copy of a block back."""
    if not block:
        tensor.copy_(values)
        return
    (dim, index), *rest = block
    if isinstance(index, slice):
        put(tensor.narrow(dim, index.start, index.stop - index.start), rest, values)
        return
    if rest:
        part = tensor.index_select(dim, index)
        put(part, rest, values)
        values = part
    tensor.index_copy_(dim, index, values)


def _is_dtensor(tensor: Tensor) -> bool:
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def local(tensor: Tensor) -> Tensor:
    """The tensor itself, or of a distributed one the part that this process holds, as memory to write to."""
    if _is_dtensor(tensor):
        return tensor.to_local()  # type: ignore[attr-defined, no-any-return]
    if type(tensor) not in (Tensor, nn.Parameter):
        raise UsageError(
            f"a tensor of the class {type(tensor).__name__} cannot be isolated or held in part: its entries may share "
            "scales, so that one entry's step changes another's."
        )
    return tensor


def part(parameter: Any, dim: int) -> tuple[int, int]:
    """Where along a dimension the part of a parameter begins and ends that this process holds."""
    start, stop = 0, int(parameter.shape[dim])
    if not _is_dtensor(parameter):
        return start, stop
    sharded = [placement for placement in parameter.placements if not placement.is_replicate()]
    if any(type(placement).__name__ != "Shard" for placement in sharded) or len(set(sharded)) != len(sharded):
        raise UsageError(
            f"a parameter placed as {parameter.placements} cannot be isolated or held in part: expected Replicate, "
            "or at most one plain Shard for each dimension, as fully_shard makes it."
        )
    for axis, placement in enumerate(parameter.placements):
        if placement.is_shard(dim):  # as torch.chunk divides it
            chunk = -(-stop // parameter.device_mesh.size(axis))
            start = min(chunk * parameter.device_mesh.get_local_rank(axis), stop)
            return start, min(start + chunk, stop)
    return start, stop
