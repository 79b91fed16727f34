"""Everything that could lose a mask without a word, and what is done about it: one function for each fault."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import torch
from torch import nn

from .. import _torch_private as private
from ..errors import SiteError, UsageError, preview
from ..spec._masks import Mask
from ._any_module import has_learning_tensors
from ._attachment import AttachedSite, State
from ._checkpointing import Pass, current_pass
from ._nested import any_requires_grad
from ._parameter_level import stands_in
from ._site import Site


class Hook(Protocol):
    """What the guards of a pass ask of a site's hook."""

    position: int
    name: str
    site: Site
    group: int
    state: State
    reached: bool
    routes_parameters: bool


# ---------------------------------------------------------------------- at each forward pass of a site


def check_pass(hook: Hook, module: nn.Module, tensors: Any) -> tuple[Mask, ...]:
    """All checks of a forward pass that reaches a site, in the order in which they must be made.

    Returns:
        The masks that this pass is to be routed by, one for each group of sites; none where it is not to be.
    """
    state = hook.state
    if torch.compiler.is_compiling():
        return _check_traced_pass(hook, module, tensors)
    kind, region = current_pass()
    if kind is not Pass.SECOND:
        _record_what_is_taught(hook)
    refuse_stray_copy(hook, module, tensors)
    state.ran.add(hook.position)  # before anything refuses the pass: a site that was called is not silent
    refuse_other_thread(hook)
    if state.suspended:
        return ()
    refuse_other_labels_in_recomputation(hook, kind, region)
    if kind is Pass.SECOND:  # of which the graph is not used
        return ()
    masks = state.masks
    if not masks and module.training and _learns(hook, module, tensors):
        warn_of_missing_labels(hook)
    return masks


def _check_traced_pass(hook: Hook, module: nn.Module, tensors: Any) -> tuple[Mask, ...]:
    """The checks that compiled code can make; what it cannot note or say is done once, while Dynamo traces."""
    from . import _traced  # noqa: PLC0415  # an import in traced code is executed by Dynamo: see there

    _record_what_is_taught(hook)
    refuse_stray_copy(hook, module, tensors)
    masks = hook.state.masks
    unrouted = None
    if len(masks) == 0 and module.training and _learns(hook, module, tensors):
        unrouted = hook.name
    _traced.note(hook.state.name, hook.position, unrouted)
    return masks


def _record_what_is_taught(hook: Hook) -> None:
    """Tell those who ask (`Isolation`, `watch`) what this pass may teach: a unit taught unnoticed would be frozen."""
    state = hook.state
    if not state.records or not torch.is_grad_enabled():
        return
    for record in state.records:
        if not state.masks:
            record.note_unrouted(hook.group)
        elif not torch.compiler.is_compiling():  # a pass after a step in the same block
            record.note(state.masks)


def refuse_stray_copy(hook: Hook, module: nn.Module, tensors: Any) -> None:
    """A copied model carries copies of the hooks; if the router was not copied with it, no labels ever reach them."""
    if not hook.state.orphan or not torch.is_grad_enabled():
        return
    if module.training:
        raise UsageError(
            f"site {hook.name!r}: this model is a copy of a routed model, and its router was not copied "
            "with it, so nothing can route it. Copy both at once: copy.deepcopy((model, router)) or a RoutedModule."
        )
    if _learns(hook, module, tensors) and not torch.compiler.is_compiling():
        hook.state.warn(
            "stray copy",
            f"site {hook.name!r}: this model is a copy of a routed model without its router, and ran a forward pass "
            "with gradients in evaluation mode: if anything learns from it, that is not routed. Evaluate under "
            "torch.no_grad(), or copy both at once: copy.deepcopy((model, router)).",
            stacklevel=4,
        )


def refuse_other_thread(hook: Hook) -> None:
    """A pass in another thread than the block's would be routed by the labels of somebody else's batch."""
    if hook.state.thread not in (None, threading.get_ident()) and not private.in_backward():
        raise UsageError(
            f"site {hook.name!r}: the router holds the labels of another thread. Give each thread its "
            "own model and router, or run them one after the other."
        )


def refuse_other_labels_in_recomputation(hook: Hook, kind: Pass, region: Any) -> None:
    """Activation checkpointing runs a pass again in backward, when the router may hold the labels of another batch."""
    state = hook.state
    if kind is Pass.PLAIN:
        return
    now = state.in_flight()
    if kind is Pass.FIRST:
        state.first_passes.note(region, hook.position, now)
        return
    first = state.first_passes.of(region, hook.position)
    if kind is Pass.SECOND:
        # Its graph keeps the labels of the first pass; what it computes must be the same.
        if not any(held.ablated == now.ablated for held in first) and (first or state.ever_ablated):
            raise _untrusted(hook, "ablated labels")
    elif not any(held.same_labels(now) and held.ablated == now.ablated for held in first):
        raise _untrusted(hook, "labels", ", or checkpoint with use_reentrant=False")


def masks_for_parameters(hook: Hook) -> tuple[Mask, ...]:
    """At level "parameters" a recomputation must save the same tensors as its first pass, and so be routed as that was.

    The masks themselves stay with the graph of the first pass.
    """
    state = hook.state
    if torch.compiler.is_compiling() or state.suspended:
        return state.masks
    kind, region = current_pass()
    if kind is Pass.FIRST:
        state.first_passes.note(region, hook.position, state.in_flight())
    if kind is not Pass.SECOND:
        return state.masks
    first = state.first_passes.of(region, hook.position)
    if not first:
        raise _untrusted(hook, "labels")
    now = state.in_flight()
    return next((held for held in first if held.same_labels(now)), first[0]).masks


def _untrusted(hook: Hook, what: str, or_else: str = "") -> UsageError:
    return UsageError(
        f"site {hook.name!r}: activation checkpointing recomputes this forward pass inside backward, and the "
        f"router does not hold the {what} that it first ran under. Put backward inside the same "
        f"`with router{'.ablated(...)' if what == 'ablated labels' else '(labels)'}` block as its forward "
        f"pass{or_else}."
    )


def warn_of_missing_labels(hook: Hook) -> None:
    """A training pass outside of a block learns unrouted. Right in evaluation; in training it is said once."""
    hook.state.warn_unrouted(hook.name, stacklevel=5)


def _learns(hook: Hook, module: nn.Module, tensors: Any) -> bool:
    """Whether anything learns through a pass of this site."""
    if not torch.is_grad_enabled():
        return False
    # What reads an input learns also where the input, such as a batch of data, does not.
    return (hook.routes_parameters and has_learning_tensors(module)) or any_requires_grad(tensors)


def refuse_replaced_forward(hook: Hook, module: nn.Module) -> None:
    """At level "parameters" it is the stand-in for the module's forward that routes: a pass without it is unrouted."""
    if not hook.routes_parameters or torch.compiler.is_compiling():
        return
    reached, hook.reached = hook.reached, False
    if hook.state.masks and not reached and not stands_in(module):
        raise UsageError(
            f"site {hook.name!r}: the forward method of this {type(module).__name__} was replaced after the router "
            "was attached, and level='parameters' routes inside of it. Replace it first, then make the router; or "
            "wrap what stands there."
        )


# ---------------------------------------------------------------------- when a router is attached


def refuse_module_that_is_never_called(name: str, model: nn.Module) -> None:
    """No hook runs on a module whose parent uses its weights without calling it.

    Raises:
        SiteError: The module is such a one.
    """
    parent, _, child = name.rpartition(".")
    if child == "out_proj" and isinstance(model.get_submodule(parent), nn.MultiheadAttention):
        raise SiteError(
            f"{name!r} is never called: nn.MultiheadAttention reads its weights itself, so a site there would route "
            f"nothing. Put the site on {parent!r} with index=0: its output is that of the projection."
        )


# ---------------------------------------------------------------------- when a block begins and ends

Link = tuple[nn.Module, str, nn.Module]


def links(model: nn.Module, names: Iterable[str]) -> list[Link]:
    """Each step from the model down to some of its modules: parent, attribute and child."""
    found: dict[tuple[nn.Module, str], nn.Module] = {}
    for name in names:
        parent = model
        for step in name.split(".") if name else ():
            found[parent, step] = parent.get_submodule(step)
            parent = found[parent, step]
    return [(parent, step, child) for (parent, step), child in found.items()]


def refuse_replaced_modules(model: nn.Module, sites: Sequence[AttachedSite], stood: list[Link]) -> list[Link]:
    """Another module now stands where a site is, and no hook routes it. Returns the links as they are now.

    Raises:
        UsageError: A site's module is gone, or wrapped in one that learns something of its own.
    """
    if all(parent._modules.get(name) is module for parent, name, module in stood):
        return stood
    names = {module: name for name, module in model.named_modules()}
    attached = {site.name: site.module for site in sites}
    gone = [name for name, module in attached.items() if module not in names]
    if gone:
        raise UsageError(
            f"the modules of the sites {preview(gone, 3)} are no longer in the model: they were replaced or taken "
            "out after the router was attached, so nothing would route what stands there now. Remove the router "
            "and make a new one."
        )
    for name, module in attached.items():
        refuse_wrapper_that_learns(model, name, module)
    return links(model, [names[module] for module in attached.values()])  # wrapped, or moved


def refuse_wrapper_that_learns(model: nn.Module, name: str, module: nn.Module) -> None:
    """What now stands in a site's place, around its module, adds parameters that go around the site: an adapter."""
    wrapper = dict(model.named_modules(remove_duplicate=False)).get(name)
    if wrapper is None or module not in wrapper.modules():
        return
    known = set(module.parameters())
    own = [inner for inner, p in wrapper.named_parameters() if p.requires_grad and p not in known]
    if own:
        raise UsageError(
            f"the module of site {name!r} was wrapped in a {type(wrapper).__name__} after the router was attached, "
            f"and what that adds by parameters of its own ({preview(own, 2)}) goes around the site. Remove the "
            "router, and make it after the model is wrapped."
        )


def overlapping() -> UsageError:
    """Blocks that overlap, as those of generators and async tasks do, hold the labels of the wrong one in between."""
    return UsageError(
        "blocks of one router overlapped: this one ended while another, begun inside of it, was still open, as "
        "generators and async tasks do that take turns. What ran in between had the labels of the wrong one. End each "
        "block before another task begins one, or give each task its own model and router."
    )


def warn_of_silent_sites(state: State, sites: Sequence[AttachedSite]) -> None:
    """The model ran, but a site's module was never called: another module reads its weights, or calls its forward."""
    # Compiled code notes nothing, so a site that was compiled may well have run.
    silent = [site.name for position, site in enumerate(sites) if position not in state.ran | state.traced]
    if silent and (state.model_ran or len(silent) < len(sites)):
        state.warn(
            ("silent", *silent),
            f"the model ran, but the sites {preview(silent, 3)} did not: their modules were never called, so they "
            "routed and ablated nothing. Another module may read their weights, or call their forward method "
            "directly.",
            stacklevel=3,
        )
