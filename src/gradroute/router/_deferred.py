"""`Later`: what takes the labels of a block of which they are known only after its forward passes."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .. import _torch_private as private
from ..errors import UsageError
from ..spec._deferred_mask import DeferredMask
from ..spec._masks import Mask
from ..spec._spec import RoutingSpec
from ._attachment import Attachment, Labels
from ._site_mask import Use


class Later:
    """Takes the labels of a ``with router.deferred()`` block, once somebody knows them.

    It holds what the block routed, by shape only: no tensor, no graph.

    Attributes:
        labels: A copy of the labels that were set; None before.
    """

    def __init__(self, attachment: Attachment) -> None:
        self.labels: Labels | None = None
        self._attachment = attachment
        self._masks: tuple[Mask, ...] | None = None
        self._uses: tuple[set[Use], ...] = tuple([set() for _ in attachment.groups])

    def set(self, labels: Labels) -> None:
        """Say what the examples were. Any time before backward, inside of the block or after it; once.

        The labels are copied: what is written to the tensor later moves no mask.

        Args:
            labels: As for ``router(labels)``.

        Raises:
            LabelError: The labels do not fit the specs, or a tensor that was routed in the block. None are set then.
            UsageError: There are labels already, or it is called in compiled code or inside of a `torch.func`
                transform.
        """
        if self._masks is not None:
            raise UsageError(
                "the labels of this `with router.deferred()` block were set already, and a backward pass may have used "
                "them. For other labels run the forward pass again, in a block of its own."
            )
        if torch.compiler.is_compiling() or private.transforms_active():
            raise UsageError(
                "later.set(labels) is no operation of PyTorch, and can be neither compiled nor transformed: call it "
                "outside, between the forward pass and backward."
            )
        with torch.inference_mode(mode=False):  # where a copy would be good for no graph
            labels = _copied(labels)
            masks = self._attachment.masks(labels)
        for mask, uses in zip(masks, self._uses, strict=True):
            for use in uses:
                use.check(mask)
        self.labels, self._masks = labels, masks
        for uses in self._uses:
            uses.clear()

    def masks(self) -> tuple[DeferredMask, ...]:
        """For each group of sites, what its hooks keep until the labels are there. This object does not keep them."""
        tables = [group.spec.masks for group in self._attachment.groups]
        return tuple(
            DeferredMask(table, partial(self._mask, number), self._note, self._uses[number])
            for number, table in enumerate(tables)
        )

    def _mask(self, group: int) -> Mask | None:
        return None if self._masks is None else self._masks[group]

    def _note(self) -> None:
        """The masks are being applied: tell those who ask what is taught."""
        if self._masks is not None:
            for record in self._attachment.state.records:
                record.note(self._masks)

    def __repr__(self) -> str:
        return f"<labels of a deferred block: {'not set' if self._masks is None else 'set'}>"


def _copied(labels: Any) -> Any:
    if isinstance(labels, Mapping):
        return {pattern: _copied(each) for pattern, each in labels.items()}
    return labels.detach().clone() if isinstance(labels, Tensor) else labels


def refuse_deferred(pattern: str, spec: RoutingSpec) -> None:
    """Refuse a spec whose forward pass depends on the labels, so that they cannot come after it.

    Raises:
        UsageError: It is one.
    """
    if spec.has_silent:
        raise UsageError(
            f"the spec of {pattern!r} has silent units, which are off in the forward pass already, so that it needs "
            "the labels: run it in a `with router(labels)` block, or leave out silent=."
        )
