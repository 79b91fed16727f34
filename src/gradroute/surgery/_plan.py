"""`Plan`: what is to change in the weights of a model when units go."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Cut:
    """The entries of one parameter or buffer, along one dimension, that belong to units which are off."""

    name: str
    dim: int
    mask: Tensor  # bool [size]


@dataclass(frozen=True)
class Fold:
    """A constant that units which are off still bring to a reader, because they are not 0 when they reach it."""

    weight: str
    dim: int
    bias: str
    values: Tensor  # float64 [size of that dimension], 0 where the unit is on


@dataclass(frozen=True)
class Heads:
    """How many heads of an attention go."""

    module: str
    before: int
    gone: int
    size: int


@dataclass
class Plan:
    """All that changes when units go."""

    cuts: list[Cut] = field(default_factory=list)
    folds: list[Fold] = field(default_factory=list)
    heads: list[Heads] = field(default_factory=list)

    @property
    def names(self) -> set[str]:
        """All parameters and buffers that change."""
        return {cut.name for cut in self.cuts} | {fold.bias for fold in self.folds}

    @torch.no_grad()
    def fold(self, tensors: Mapping[str, Tensor]) -> None:
        """Add to each reader's bias, in place, what its weight makes of units that are constant."""
        for fold in self.folds:
            weight, bias = tensors[fold.weight], tensors[fold.bias]
            units = fold.values.nonzero().flatten()
            read = weight.detach().index_select(fold.dim, units.to(weight.device)).cpu().double()
            read = read.movedim(fold.dim, 0).flatten(2).sum(2) if read.ndim > 2 else read.movedim(fold.dim, 0)
            bias.copy_(bias.cpu().double() + fold.values[units] @ read)
