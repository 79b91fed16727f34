"""`DeferredMask`: the mask of a batch whose labels come after its forward pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import torch

from ..errors import UsageError
from ._masks import Applied, Kept, Mask, MaskTable, check_units


class DeferredMask:
    """What a forward pass keeps in place of a `Mask` where nobody knows the labels yet.

    It knows the spec's table. For all that hangs on labels it asks for the mask, each time that it needs it: who reads
    them before they are there gets an error, and never a mask that is open.

    Args:
        table: The masks of all labels of the spec.
        ask: Gives the mask, or None as long as there are no labels.
        note: Is called each time that the mask is applied: only then is it known what the pass teaches.
        uses: Where its users put what the labels are to be checked against when they come.

    Attributes:
        table: The masks of all labels of the spec.
        applied: In which backward pass a gradient was multiplied by it last.
        uses: What the labels are to be checked against.
    """

    __slots__ = ("__weakref__", "_ask", "_note", "applied", "table", "uses")

    def __init__(
        self, table: MaskTable, ask: Callable[[], Mask | None], note: Callable[[], None], uses: set[Any]
    ) -> None:
        self.table = table
        self.applied = Applied()
        self._ask = ask
        self._note = note
        self.uses = uses

    @property
    def width(self) -> int:
        """The number of units."""
        return self.table.width

    @property
    def silences(self) -> bool:
        """Whether a unit may be off in the forward pass: for such a spec labels may not come late."""
        return self.table.off is not None

    def if_known(self) -> Mask | None:
        """The mask; None as long as no labels were set."""
        return self._ask()

    def known(self) -> Mask:
        """The mask, in backward.

        Raises:
            UsageError: No labels were set.
        """
        if torch.compiler.is_compiling():
            raise UsageError(
                "compiled autograd cannot run backward for a `with router.deferred()` block, whose labels are none of "
                "its graph's: run this backward pass without it, or the forward pass in a `with router(labels)` block."
            )
        mask = self._ask()
        if mask is None:
            raise UsageError(
                "backward reached a forward pass of a `with router.deferred() as later:` block, and its labels were "
                "not set, so that nothing says what it may teach. Call later.set(labels) before backward. (What this "
                "backward pass wrote into .grad before it stopped is not the whole: zero_grad() and start again.)"
            )
        self._note()
        return mask

    def known_in_forward(self, why: str) -> Mask:
        """The mask, where the forward pass itself needs it.

        Raises:
            UsageError: No labels were set; the message says why they are needed.
        """
        mask = self._ask()
        if mask is None:
            raise UsageError(
                f"labels come too late: in a `with router.deferred()` block they are set after the forward pass, and "
                f"here it needs them, since {why}."
            )
        self._note()
        return mask

    def check_fits(self, shape: torch.Size, dim: int, *, broadcast: bool = False) -> int:
        """As `Mask.check_fits`: all of it once there are labels, and before only what needs none.

        Raises:
            LabelError: The mask does not fit the shape of the routed tensor.
        """
        mask = self._ask()
        if mask is not None:
            return mask.check_fits(shape, dim, broadcast=broadcast)
        return check_units(shape, dim, self.width, broadcast=broadcast)

    def look_up(self, shape: torch.Size) -> Kept | None:
        """None: nothing is looked up in a forward pass that comes before its labels."""
        return None

    def check_device(self, device: torch.device) -> None:
        """As `Mask.check_device`, once there are labels.

        Raises:
            LabelError: The labels hold no values, and the routed tensor does.
        """
        mask = self._ask()
        if mask is not None:
            mask.check_device(device)


BatchMask: TypeAlias = "Mask | DeferredMask"
