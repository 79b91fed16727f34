"""`Taught`: a record of which units the forward passes that ran may teach."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from .. import _torch_private as private
from ..spec._masks import Mask


class Taught:
    """The units that may have been taught since this was cleared last.

    Attributes:
        units: bool [width] for each group of sites, on the CPU.
    """

    def __init__(self, widths: Iterable[int]) -> None:
        self.units = [torch.zeros(width, dtype=torch.bool, device="cpu") for width in widths]
        self._noted: tuple[Mask, ...] | None = None

    def note(self, masks: tuple[Mask, ...]) -> None:
        """Passes under these masks, one for each group, may run. Noted once, however often this is called in a row."""
        if not torch.compiler.is_compiling():  # an attribute that compiled code would be guarded on
            if masks is self._noted:
                return
            self._noted = masks
        with private.outside_of_transforms():
            for units, mask in zip(self.units, masks, strict=True):
                units.logical_or_(mask.taught().to(units.device))

    def note_unrouted(self, group: int) -> None:
        """A pass without labels ran, which teaches every unit."""
        with private.outside_of_transforms():
            self.units[group].fill_(True)

    def clear(self, value: bool = False) -> None:
        """Forget what was noted, or with True: assume that everything was taught."""
        for units in self.units:
            units.fill_(value)
        self._noted = None
