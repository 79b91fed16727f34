"""masklib (Cloud et al., arXiv:2410.04332), from the description of its classes: indices of masks, edits at hook points.

A *mask* is a tensor of weights, one a unit; each token has the index of its mask; the last index means "no mask": all ones.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from .hook_points import edited, with_gradient_times


@dataclass
class Applier:
    """Masks at some hook points of a model.

    Attributes:
        names: The hook points.
        masks: [n_masks, *shape of a unit tensor], without "no mask".
    """

    model: nn.Module
    names: Sequence[str]
    masks: Tensor
    table: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.table = torch.cat([self.masks, torch.ones_like(self.masks[:1])])

    def _at_all(self, edit: Callable[[Tensor], Tensor]) -> contextlib.AbstractContextManager[None]:
        return edited(self.model, dict.fromkeys(self.names, edit))

    def masking(self, indices: Tensor, mask_weight: float = 1.0) -> contextlib.AbstractContextManager[None]:
        """Each token's gradient is multiplied by its mask, and all of them by `mask_weight`."""
        return self._at_all(lambda value: with_gradient_times(value, mask_weight * self.table[indices]))

    def mixing(self, amounts: Tensor) -> contextlib.AbstractContextManager[None]:
        """Each token has a mixture of masks 0 and 1, by how much of mask 1 is in it."""
        amounts = amounts.reshape(*amounts.shape, *[1] * (self.masks.ndim - 1))
        return self._at_all(
            lambda value: with_gradient_times(value, (1 - amounts) * self.table[0] + amounts * self.table[1])
        )

    def zero_ablate(self, index: int) -> contextlib.AbstractContextManager[None]:
        """The units of one mask are off, for all tokens; a soft mask scales by what is left of 1."""
        return self._at_all(lambda value: (1 - self.table[index]) * value)

    def mask_and_zero_ablate(
        self, indices: Tensor, default: int, ablating: Sequence[int], mask_weight: float = 1.0
    ) -> contextlib.AbstractContextManager[None]:
        """Masks; and a token whose index is one of `ablating` keeps the units of its mask alone, others those of `default`."""
        own = torch.isin(indices, torch.tensor(ablating))
        keep = self.table[torch.where(own, indices, default)] != 0
        masks = mask_weight * self.table[indices]
        return self._at_all(lambda value: torch.where(keep, with_gradient_times(value, masks), 0))


def larger(tensor: Tensor, shape: Sequence[int], scale: float) -> Tensor:
    """A tensor of another shape with the old one in its first corner; what is new is random, times the scale."""
    grown = scale * torch.randn(*shape, dtype=tensor.dtype)
    grown[tuple(slice(size) for size in tensor.shape)] = tensor
    return grown
