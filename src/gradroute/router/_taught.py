"""`Taught`: a record of which units the forward passes that ran may teach."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from .. import _torch_private as private
from ..spec._masks import Mask

Masks = tuple[Mask, ...]


class Taught:
    """The units that may have been taught since this was cleared last.

    A block notes its labels when it begins. A pass in eager mode notes them again: a step may have been taken in the
    block since, and what was noted before it is forgotten. Compiled code notes nothing. So whether a block goes on
    teaching after a step is *in doubt*. It does if a backward pass makes a gradient before another block begins.

    Args:
        widths: How many units each group of sites has.
        parameters: Those that are asked about; by their gradients a doubt is settled.

    Attributes:
        units: bool [width] for each group of sites, on the CPU.
    """

    def __init__(self, widths: Iterable[int], parameters: Iterable[Tensor] = ()) -> None:
        self.units = [torch.zeros(width, dtype=torch.bool, device="cpu") for width in widths]
        self._parameters = list(parameters)
        self._noted: Masks = ()
        self._in_doubt: Masks = ()
        self._known_gradients = WeakTensorKeyDictionary()  # when the doubt began, with their versions

    def begin(self, block: Masks) -> None:
        """A block begins. What its passes may teach is noted unless they run without gradients."""
        if not torch.compiler.is_compiling():
            self.settle()
            self._in_doubt = ()
        if torch.is_grad_enabled():
            self.note(block)

    def end(self, outer: Masks) -> None:
        """A block ends. The one around it, if there is one and passes may go unnoticed, is in doubt now."""
        if not torch.compiler.is_compiling():
            self.settle()
            if outer:
                self._doubt(outer)

    def note(self, block: Masks) -> None:
        """Passes under these masks, one for each group, may run. Noted once, however often this is called in a row."""
        if not torch.compiler.is_compiling():  # an attribute that compiled code would be guarded on
            if block is self._noted:
                return
            self._noted = block
        with private.outside_of_transforms():
            for units, mask in zip(self.units, block, strict=True):
                units.logical_or_(mask.taught().to(units.device))

    def note_unrouted(self, group: int) -> None:
        """A pass without labels ran, which teaches every unit."""
        with private.outside_of_transforms():
            self.units[group].fill_(True)

    def note_everything(self) -> None:
        """All units count as taught."""
        for units in self.units:
            units.fill_(True)

    def clear(self, block: Masks = ()) -> None:
        """Forget what was noted. The block that is on, if one is and passes may go unnoticed, is in doubt now."""
        for units in self.units:
            units.fill_(False)
        self._noted = ()
        self._doubt(block)

    @torch.no_grad()
    def settle(self) -> None:
        """Note the block that is in doubt if a gradient was made since it is."""
        if self._in_doubt and any(self._is_new(gradient) for gradient in self._gradients()):
            self.note(self._in_doubt)
            self._in_doubt = ()

    # ------------------------------------------------------------------ what compiled code does not note

    @torch.no_grad()
    def _doubt(self, block: Masks) -> None:
        self._in_doubt = block
        self._known_gradients = WeakTensorKeyDictionary()
        if self._in_doubt:
            for gradient in self._gradients():
                self._known_gradients[gradient] = private.version(_local(gradient))

    def _gradients(self) -> Sequence[Tensor]:
        return [parameter.grad for parameter in self._parameters if parameter.grad is not None]

    def _is_new(self, gradient: Tensor) -> bool:
        here = _local(gradient)
        if gradient in self._known_gradients and self._known_gradients[gradient] == private.version(here):
            return False
        return here.layout != torch.strided or bool(here.any())  # zeros are what `zero_grad` may leave


def _local(gradient: Tensor) -> Tensor:
    """Of a distributed tensor the part that this process holds: to look at the whole, all would have to take part."""
    return gradient.to_local() if hasattr(gradient, "to_local") else gradient
