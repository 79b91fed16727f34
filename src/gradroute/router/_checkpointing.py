"""Activation checkpointing runs forward passes again, inside backward: which one is this, and whose is it?

Non-reentrant checkpointing keeps the graph of the first forward pass and takes only saved tensors from the second.
Routing saves no tensors there (see `functional`), so the labels of the first pass decide, whatever the router holds by
then. What must be the same is the forward pass itself: which labels are ablated.

Reentrant checkpointing builds its graph in the second pass, inside backward. So the router must hold the labels of
the first pass again, and nothing in PyTorch says which these were. `Ledger` keeps count: a second pass under labels
that no first pass ran under, or more often than one did, is not trusted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable
from enum import Enum, auto
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from .. import _torch_private as private


class Pass(Enum):
    """What kind of forward pass is running."""

    PLAIN = auto()
    FIRST = auto()
    """May be recomputed: in a checkpointed region, or without gradients, as reentrant checkpointing runs it."""
    SECOND = auto()
    """A recomputation whose saved tensors are taken and whose graph is not."""
    SECOND_REENTRANT = auto()
    """A recomputation that builds the graph."""


def current_pass() -> Pass:
    """The kind of the forward pass that calls this, outside of `torch.compile`."""
    if not torch.is_grad_enabled():
        return Pass.FIRST
    if not torch.is_grad_enabled():
        return Pass.FIRST
    checkpointing, _ = private.checkpoint_hook()
    if checkpointing == "first":
        return Pass.FIRST
    if not private.in_backward():
        return Pass.PLAIN
    return Pass.SECOND if checkpointing == "again" else Pass.SECOND_REENTRANT


class Ledger:
    """Counts first passes by the labels they ran under, and takes second passes off again."""

    def __init__(self) -> None:
        # Weak and by identity: label tensors of an evaluation that nothing recomputes must not pile up.
        self._counts: Any = WeakIdKeyDictionary()
        self._unlabeled: Counter[Hashable] = Counter()

    def note(self, labels: Tensor | None, what: Hashable) -> None:
        """A first pass of `what` ran under these labels."""
        self._counter(labels)[what] += 1

    def settle(self, labels: Tensor | None, what: Hashable) -> bool:
        """A second pass of `what` runs under these labels: whether a first one did, and was not yet recomputed."""
        counter = self._counter(labels)
        if counter[what] == 0:
            return False
        counter[what] -= 1
        return True

    def _counter(self, labels: Tensor | None) -> Counter[Hashable]:
        if labels is None:
            return self._unlabeled
        counter: Counter[Hashable] = self._counts.setdefault(labels, Counter())
        return counter
