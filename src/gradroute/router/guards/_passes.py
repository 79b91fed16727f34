"""The checks of a forward pass that reaches a site: in eager code, in code that is traced, in compiled code that runs.

Each is made in the order in which it must be. What they refuse stands in the files beside this one.
"""

from __future__ import annotations

import threading
from typing import Any

import torch
from torch import nn

from ... import _torch_private as private
from ...errors import UsageError
from ...spec._deferred_mask import BatchMask
from .._attachment import AnySite, Hook
from .._checkpointing import Pass, current_compiled_pass, current_pass
from .._compiled import CHECKS, CompiledSite, ask_when_it_runs
from .._in_flight import IN_FLIGHT
from . import _recomputations as recomputations
from . import _stray_copies as stray_copies
from ._missing_labels import learns, warn_of_missing_labels, watch_for_missing_labels
from ._programs import refuse_deferred_labels, refuse_silence_for_ever
from ._replaced_forward import note_reached


def check_pass(hook: Hook, module: nn.Module, tensors: Any) -> tuple[BatchMask, ...]:
    """All checks of a forward pass that reaches a site, in the order in which they must be made.

    Returns:
        The masks that this pass is to be routed by, one for each group of sites; none where it is not to be.
    """
    state = hook.state
    if torch.compiler.is_compiling():
        return _check_traced_pass(hook, module, tensors)
    masks = () if state.suspended else IN_FLIGHT.get(state.name, ())
    if (  # a pass in a block of this thread, that is recorded, once: none of the checks has anything to say
        masks
        and state.thread == threading.get_ident()
        and torch.is_grad_enabled()
        and private.is_recorded_once()
        and not hook.may_silence
        and not state.orphan
    ):
        for record in state.records:
            record.note(masks)
        state.ran.add(hook.position)
        state.ran_apart[hook.position] = False
        return masks
    now = current_pass()
    if now.kind is not Pass.SECOND and torch.is_grad_enabled():
        _record_what_is_taught(hook)
    stray_copies.refuse_stray_copy(hook, module, tensors)
    state.ran.add(hook.position)  # before anything refuses the pass: a site that was called is not silent
    refuse_other_thread(hook)
    if state.suspended:
        return ()
    recomputations.refuse_other_labels(hook, now)
    if now.kind is Pass.SECOND:  # of which the graph is not used; but what is silent is so again
        return recomputations.masks_of_first_pass(hook, now.second_of) if hook.site.spec.has_silent else ()
    masks = state.masks
    if not masks and learns(hook, module, tensors):
        if module.training:
            warn_of_missing_labels(hook)
        else:
            watch_for_missing_labels(hook, module, tensors)
    refuse_silence_for_ever(hook, masks)
    if masks:
        _note_whether_apart(hook, now.kind)
    return masks


def watch_what_a_reader_returns(hook: Hook, module: nn.Module, output: Any) -> None:
    """In evaluation, whether the parameters learn that read an input is seen by what the module returns.

    The input may be data, to which no gradient comes.
    """
    if module.training or torch.compiler.is_compiling() or not torch.is_grad_enabled():
        return
    stray_copies.refuse_stray_copy(hook, module, output)
    state = hook.state
    if state.orphan or state.masks or state.suspended or current_pass().kind is Pass.SECOND:
        return
    watch_for_missing_labels(hook, module, output)


def _check_traced_pass(hook: Hook, module: nn.Module, tensors: Any) -> tuple[BatchMask, ...]:
    """The checks that are made of what is traced. The others are made each time that the code runs."""
    stray_copies.refuse_stray_copy(hook, module, tensors)
    if private.is_exporting():
        refuse_deferred_labels(hook)
    masks = hook.state.masks
    refuse_silence_for_ever(hook, masks)
    ask_when_it_runs("pass", hook, trains=len(masks) == 0 and module.training and learns(hook, module, tensors))
    return masks


def masks_for_parameters(hook: Hook) -> tuple[BatchMask, ...]:
    """At level "parameters" a recomputation must save the same tensors as its first pass, and so be routed as that was.

    The masks themselves stay with the graph of the first pass.
    """
    state = hook.state
    if torch.compiler.is_compiling():
        ask_when_it_runs("parameters", hook)
        refuse_silence_for_ever(hook, state.masks)
        return state.masks
    now = current_pass()
    note_reached(hook, now.kind)
    if state.suspended:
        return ()
    if now.first_in:
        state.first_passes.note(now.first_in, hook.position, state.in_flight())
    if now.kind is not Pass.SECOND:
        return state.masks
    return recomputations.masks_of_first_pass(hook, now.second_of)


def _check_compiled_pass(site: CompiledSite) -> None:
    """The checks of a pass that reaches a site in compiled code."""
    state = site.state
    state.ran.add(site.position)
    if site.labeled_inside:  # by what is computed in the code, whatever the router holds, and noted there
        return
    refuse_deferred_labels(site)
    now = current_compiled_pass()
    if now.kind is not Pass.SECOND and site.learns:
        _record_what_is_taught(site)
        state.ran_compiled.add(site.position)
    refuse_other_thread(site)
    if state.suspended:
        return
    recomputations.refuse_other_labels(site, now, compiled=True)
    if site.trains and not state.masks:
        warn_of_missing_labels(site)


def _check_compiled_parameters(site: CompiledSite) -> None:
    """The stand-in for the forward of a site's module runs in compiled code: it may be called past the hooks."""
    state = site.state
    now = current_compiled_pass()
    note_reached(site, now.kind)
    if not site.labeled_inside:
        refuse_deferred_labels(site)
    if not site.labeled_inside and not state.suspended:
        recomputations.refuse_other_labels(site, now, compiled=True)


CHECKS["pass"] = _check_compiled_pass
CHECKS["parameters"] = _check_compiled_parameters


def refuse_other_thread(hook: AnySite) -> None:
    """A pass in another thread than the block's would be routed by the labels of somebody else's batch."""
    if hook.state.thread not in (None, threading.get_ident()) and not private.in_backward():
        raise UsageError(
            f"site {hook.name!r}: the router holds the labels of another thread. Give each thread its "
            "own model and router, or run them one after the other."
        )


def _record_what_is_taught(hook: AnySite) -> None:
    """Tell those who ask (`Isolation`, `watch`) what this pass may teach: a unit taught unnoticed would be frozen."""
    state = hook.state
    for record in state.records:
        if state.masks:  # noted as their block began; again, since a step may have been taken in it
            record.note(state.masks)
        else:
            record.note_unrouted(hook.group)


def _note_whether_apart(hook: AnySite, kind: Pass) -> None:
    """A model may compute a site's tensor without gradients, beside what its loss is computed of: see `Uncalled`."""
    state = hook.state
    apart = not torch.is_grad_enabled() and kind is Pass.PLAIN
    if not apart or state.model_records:
        state.ran_apart[hook.position] = apart and state.ran_apart.get(hook.position, True)
