"""Activation checkpointing runs a forward pass again in backward, when the router may hold other labels."""

from __future__ import annotations

from typing import Any

from ...errors import UsageError
from ...spec._deferred_mask import BatchMask
from .._attachment import AnySite, Hook
from .._checkpointing import CurrentPass, Pass


def refuse_other_labels(hook: AnySite, current: CurrentPass, *, compiled: bool = False) -> None:
    """Activation checkpointing runs a pass again in backward, when the router may hold the labels of another batch.

    Compiled code saves labels as any tensor, so that those of a recomputation are taken for those of the first pass.
    """
    state = hook.state
    kind = current.kind
    if kind is Pass.PLAIN:
        return
    now = state.in_flight()
    state.first_passes.note(current.first_in, hook.position, now)
    if kind is Pass.FIRST and current.second_of is None:
        return
    first = state.first_passes.of(current.second_of, hook.position)
    if kind is Pass.SECOND and not compiled:
        # Its graph keeps the labels of the first pass; what it computes must be the same.
        if not any(held.ablated == now.ablated for held in first) and (first or state.ever_ablated):
            raise _untrusted(hook, "ablated labels")
    elif not any(held.same_labels(now) and held.ablated == now.ablated for held in first):
        raise _untrusted(hook, "labels", "" if kind is Pass.SECOND else ", or checkpoint with use_reentrant=False")


def masks_of_first_pass(hook: Hook, region: Any) -> tuple[BatchMask, ...]:
    """The masks of the first pass that is computed again, whatever labels the router holds by now.

    Where the region held blocks of its own, and so several labels, a recomputation goes through these blocks again.
    What is silent in it must be what was silent then; for the gradients alone any of the masks would do, since they
    stay with the first pass.

    Raises:
        UsageError: It is not known which of several passes this is, or none is known.
    """
    first = hook.state.first_passes.of(region, hook.position)
    now = hook.state.in_flight()
    for held in first:
        if held.same_labels(now):
            return held.masks
    if not first or (hook.site.spec.has_silent and not all(held.same_labels(first[0]) for held in first)):
        raise _untrusted(hook, "labels")
    return first[0].masks


def _untrusted(hook: AnySite, what: str, or_else: str = "") -> UsageError:
    return UsageError(
        f"site {hook.name!r}: activation checkpointing recomputes this forward pass inside backward, and the "
        f"router does not hold the {what} that it first ran under. Put backward inside the same "
        f"`with router{'.ablated(...)' if what == 'ablated labels' else '(labels)'}` block as its forward "
        f"pass{or_else}."
    )
