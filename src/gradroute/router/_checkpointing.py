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

from collections.abc import Hashable
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


def current_pass() -> tuple[Pass, Any]:
    """The kind of the forward pass that calls this, outside of `torch.compile`, and the region that it is in."""
    checkpointing, frame = private.checkpoint_hook()
    if checkpointing == "again":
        return Pass.SECOND, frame
    if checkpointing == "first":
        return Pass.FIRST, frame
    if not torch.is_grad_enabled():
        node = private.function_in_forward()
        return (Pass.PLAIN, None) if node is None else (Pass.FIRST, node)
    if private.in_backward():
        return Pass.SECOND_REENTRANT, private.node_in_backward()
    return Pass.PLAIN, None


def is_recomputed() -> bool:
    """Whether an eager pass is a recomputation whose graph is not taken, so that it teaches nothing."""
    return not torch.compiler.is_compiling() and current_pass()[0] is Pass.SECOND


def current_compiled_pass() -> tuple[Pass, Any]:
    """The same for a pass of compiled code that runs: inside of a Function of the compiler's, without gradients."""
    checkpointing, frame = private.checkpoint_hook()
    if checkpointing:
        return Pass.SECOND if checkpointing == "again" else Pass.FIRST, frame
    if private.in_backward():
        node = private.node_in_backward()
        # What a compiled backward pass computes again is of the labels that its own forward pass was given.
        return (Pass.PLAIN, None) if private.is_compiled_node(node) else (Pass.SECOND_REENTRANT, node)
    node = private.function_in_forward()
    return (Pass.PLAIN, None) if node is None else (Pass.FIRST, node)


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

    def note(self, region: Any, site: int, held: InFlight) -> None:
        """A first pass of this site ran in the region."""
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
