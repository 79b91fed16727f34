"""`Taught`: a record of which units the forward passes that ran may teach."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from .. import _torch_private as private
from ..spec._deferred_mask import BatchMask, DeferredMask

Masks = tuple[BatchMask, ...]


class Taught:
    """The units that may have been taught since this was cleared last.

    A block notes its labels when it begins, and each pass again: a step may have been taken in the block since, and
    what was noted before it is forgotten.

    Args:
        widths: How many units each group of sites has.

    Attributes:
        units: bool [width] for each group of sites, on the CPU.
    """

    def __init__(self, widths: Iterable[int]) -> None:
        self.units = [torch.zeros(width, dtype=torch.bool, device="cpu") for width in widths]
        self._noted: Masks = ()

    def begin(self, block: Masks) -> None:
        """A block begins. What its passes may teach is noted unless they run without gradients."""
        if torch.is_grad_enabled():
            self.note(block)

    def note(self, block: Masks) -> None:
        """Passes under these masks, one for each group, may run. Noted once, however often this is called in a row.

        Masks whose labels come late are noted when backward applies them: no sooner is it known what they teach.
        """
        known = [mask for mask in block if not isinstance(mask, DeferredMask)]
        if len(known) < len(block):
            return
        if not torch.compiler.is_compiling():  # an attribute that compiled code would be guarded on
            if block is self._noted:
                return
            self._noted = block
        with private.outside_of_transforms():
            for units, mask in zip(self.units, known, strict=True):
                units.logical_or_(mask.taught().to(units.device))

    def note_unrouted(self, group: int) -> None:
        """A pass without labels ran, which teaches every unit."""
        with private.outside_of_transforms():
            self.units[group].fill_(True)

    def note_everything(self) -> None:
        """All units count as taught."""
        for units in self.units:
            units.fill_(True)

    def clear(self) -> None:
        """Forget what was noted."""
        for units in self.units:
            units.fill_(False)
        self._noted = ()
