"""Activation checkpointing runs forward passes again, inside backward: which one is this, and of which first pass?

A *region* is what was checkpointed once, as PyTorch knows it: for non-reentrant checkpointing the frame that its hooks
on saved tensors share, for reentrant checkpointing (and any Function that runs a model in its forward) the Function's
node in the graph. Both are at hand in the first pass and when it is recomputed, so that a router knows exactly what it
held then.

Non-reentrant checkpointing keeps the graph of the first pass, and takes only saved tensors from the second. Routing
saves no mask there (see `autograd`), so the labels of the first pass decide, whatever the router holds by then; only
what is ablated must be the same. Reentrant checkpointing builds its graph in the second pass, so the router must hold
the labels of the first again.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from enum import Enum, auto
from typing import Any, NamedTuple

import torch
from torch.utils.weak import WeakIdKeyDictionary

from .. import _torch_private as private
from ..spec._deferred_mask import BatchMask, DeferredMask


class Pass(Enum):
    """What kind of forward pass is running."""

    PLAIN = auto()
    FIRST = auto()
    """May be recomputed: it is in a region that is checkpointed."""
    SECOND = auto()
    """A recomputation whose saved tensors are taken and whose graph is not."""
    SECOND_REENTRANT = auto()
    """A recomputation that builds the graph."""


class CurrentPass(NamedTuple):
    """A forward pass, in one region that is checkpointed or in several, of which each holds the next.

    Attributes:
        kind: What kind of pass it is.
        first_in: The regions that it may be recomputed with.
        second_of: The region that is recomputed by it. With a pass of the kind `FIRST` that is a reentrant one, around
            the others.
    """

    kind: Pass
    first_in: Sequence[Any] = ()
    second_of: Any = None


_PLAIN = CurrentPass(Pass.PLAIN)


def current_pass() -> CurrentPass:
    """The forward pass that calls this, outside of `torch.compile`."""
    if torch.is_grad_enabled() and private.is_recorded_once():  # the common case, in few steps
        return _PLAIN
    again, first_in = private.checkpoint_regions()
    if again:
        return CurrentPass(Pass.SECOND, second_of=again[0])
    if not torch.is_grad_enabled():
        first_in += private.functions_in_forward()
        if not first_in:
            return _PLAIN
    return _in_backward_or_not(first_in)


def _in_backward_or_not(first_in: Sequence[Any]) -> CurrentPass:
    if not private.in_backward():
        return CurrentPass(Pass.FIRST if first_in else Pass.PLAIN, first_in)
    return CurrentPass(Pass.FIRST if first_in else Pass.SECOND_REENTRANT, first_in, private.node_in_backward())


def is_recomputed() -> bool:
    """Whether an eager pass is a recomputation whose graph is not taken, so that it teaches nothing."""
    return not torch.compiler.is_compiling() and current_pass().kind is Pass.SECOND


def current_compiled_pass() -> CurrentPass:
    """The same for a pass of compiled code that runs: inside of a Function of the compiler's, without gradients."""
    again, first_in = private.checkpoint_regions()
    if again:
        return CurrentPass(Pass.SECOND, second_of=again[0])
    if private.is_compiled_node(private.node_in_backward()):
        # What a compiled backward pass computes again is of the labels that its own forward pass was given.
        return CurrentPass(Pass.FIRST if first_in else Pass.PLAIN, first_in)
    return _in_backward_or_not([*first_in, *private.functions_in_forward()])


class InFlight(NamedTuple):
    """What a router held in a pass.

    Attributes:
        labels: The label tensors, by which the passes of one block are told from those of another; of a block whose
            labels come late, what takes them.
        versions: How often each of them had been written.
        ablated: The labels that were ablated.
        masks: The masks of the labels, one for each group of sites.
    """

    labels: tuple[object, ...]
    versions: tuple[int, ...]
    ablated: frozenset[Hashable]
    masks: tuple[BatchMask, ...]

    def same_labels(self, other: InFlight) -> bool:
        """Whether both are of the same label tensors, unchanged."""
        same = len(self.labels) == len(other.labels) and all(map(_is, self.labels, other.labels))
        if not same or self.versions != other.versions:
            return False
        # Not everything that writes to a tensor is counted, but what each block began with is known.
        return len(self.masks) == len(other.masks) and all(map(_hold_the_same, self.masks, other.masks))


def _is(a: object, b: object) -> bool:
    return a is b


def _hold_the_same(one: BatchMask, other: BatchMask) -> bool:
    if one is other or isinstance(one, DeferredMask) or isinstance(other, DeferredMask):
        return True  # the labels that come late are of one block alone
    if one.labels.is_meta:
        return True
    return one.labels.shape == other.labels.shape and torch.equal(one.labels, other.labels.to(one.labels.device))


class FirstPasses:
    """What a router held in the first passes of all regions that may still be recomputed, by site."""

    def __init__(self) -> None:
        # Weak and by identity: a region that nothing recomputes any more is forgotten with its graph.
        self._regions: Any = WeakIdKeyDictionary()

    def note(self, regions: Sequence[Any], site: int, held: InFlight) -> None:
        """A first pass of this site ran in these regions."""
        for region in regions:
            known = self._of(region, site)
            if not any(one.same_labels(held) and one.ablated == held.ablated for one in known):
                known.append(held)

    def of(self, region: Any, site: int) -> list[InFlight]:
        """What was held in the first passes of this site in the region; empty where none is known."""
        return [] if region is None else self._of(region, site)

    def regions(self) -> list[tuple[Any, list[InFlight]]]:
        """All regions that may still be recomputed, and all that was held in their first passes."""
        return [
            (region, [held for known in by_site.values() for held in known])
            for region, by_site in list(self._regions.items())
        ]

    def _of(self, region: Any, site: int) -> list[InFlight]:
        by_site: dict[int, list[InFlight]] = self._regions.setdefault(region, {})
        return by_site.setdefault(site, [])
