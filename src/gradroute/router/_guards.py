"""Everything that could lose a mask without a word, and what is done about it: one function for each fault."""

from __future__ import annotations

import dataclasses
import threading
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from .. import _torch_private as private
from ..errors import SiteError, UnroutedWarning, UsageError, preview
from ._attachment import AttachedSite, State
from ._checkpointing import Pass, current_pass
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


def check_pass(hook: Hook, module: nn.Module, tensors: Any) -> None:
    """All checks of a forward pass that reaches a site, in the order in which they must be made."""
    state = hook.state
    compiling = torch.compiler.is_compiling()
    kind = Pass.PLAIN if compiling else current_pass()
    _record_what_is_taught(hook, kind, compiling=compiling)
    refuse_stray_copy(hook, module)
    if compiling:
        return
    state.ran.add(hook.position)  # before anything refuses the pass: a site that was called is not silent
    refuse_other_thread(hook)
    if state.suspended:
        return
    refuse_other_labels_in_recomputation(hook, kind)
    if not state.masks and kind is not Pass.SECOND:  # of that one, the graph is not used
        warn_of_missing_labels(hook, module, tensors)


def _record_what_is_taught(hook: Hook, kind: Pass, *, compiling: bool) -> None:
    """Tell those who ask (`Isolation`, `watch`) what this pass may teach: a unit taught unnoticed would be frozen."""
    state = hook.state
    if not state.records or not torch.is_grad_enabled() or kind is Pass.SECOND:
        return
    for record in state.records:
        if not state.masks:
            record.note_unrouted(hook.group)
        elif not compiling:  # a pass after a step in the same block; compiled code has no need to look
            record.note(state.masks)


def refuse_stray_copy(hook: Hook, module: nn.Module) -> None:
    """A copied model carries copies of the hooks; if the router was not copied with it, no labels ever reach them."""
    if hook.state.orphan and torch.is_grad_enabled() and module.training:
        raise UsageError(
            f"site {hook.name!r}: this model is a copy of a routed model, and its router was not copied "
            "with it, so nothing can route it. Copy both at once: copy.deepcopy((model, router)) or a RoutedModule."
        )


def refuse_other_thread(hook: Hook) -> None:
    """A pass in another thread than the block's would be routed by the labels of somebody else's batch."""
    if hook.state.thread not in (None, threading.get_ident()) and not private.in_backward():
        raise UsageError(
            f"site {hook.name!r}: the router holds the labels of another thread. Give each thread its "
            "own model and router, or run them one after the other."
        )


def refuse_other_labels_in_recomputation(hook: Hook, kind: Pass) -> None:
    """Activation checkpointing runs a pass again in backward, when the router may hold the labels of another batch."""
    state = hook.state
    if kind is Pass.PLAIN:
        return
    # Reentrant recomputation must find the labels of its first pass again; both kinds must find its ablation.
    key, labels = state.key()
    call, under_labels = (hook.position, state.ablated), (hook.position, state.ablated, "labels", labels)
    if kind is Pass.FIRST:
        state.ledger.note(None, call)
        state.ledger.note(key, under_labels)
    elif kind is Pass.SECOND:
        if not state.ledger.settle(None, call) and state.ever_ablated:
            raise _untrusted(hook, "ablated labels")
    elif not state.ledger.settle(key, under_labels):
        raise _untrusted(hook, "labels", ", or checkpoint with use_reentrant=False")


def check_recomputation_of_parameters(hook: Hook) -> None:
    """At level "parameters" masks are among the saved tensors, so a recomputation must find the same ones."""
    if torch.compiler.is_compiling() or current_pass() is not Pass.SECOND or hook.state.suspended:
        return
    key, labels = hook.state.key()
    if not hook.state.ledger.settle(key, (hook.position, hook.state.ablated, "labels", labels)):
        raise _untrusted(hook, "labels")


def _untrusted(hook: Hook, what: str, or_else: str = "") -> UsageError:
    return UsageError(
        f"site {hook.name!r}: activation checkpointing recomputes this forward pass inside backward, and the "
        f"router does not hold the {what} that it first ran under. Put backward inside the same "
        f"`with router{'.ablated(...)' if what == 'ablated labels' else '(labels)'}` block as its forward "
        f"pass{or_else}."
    )


def warn_of_missing_labels(hook: Hook, module: nn.Module, tensors: Any) -> None:
    """A training pass outside of a block learns unrouted. Right in evaluation; in training it is said once."""
    state = hook.state
    if state.warned or not (module.training and torch.is_grad_enabled() and _learns(hook, module, tensors)):
        return
    state.warned = True
    warnings.warn(
        f"site {hook.name!r} ran a training forward pass with no labels set: its gradients are not routed. Put "
        "the forward pass inside `with router(labels):`, or silence gradroute.UnroutedWarning if you mean it.",
        UnroutedWarning,
        stacklevel=5,
    )


def _learns(hook: Hook, module: nn.Module, tensors: Any) -> bool:
    # What reads an input learns also where the input, such as a batch of data, does not.
    of_own = hook.routes_parameters and any(parameter.requires_grad for parameter in module.parameters())
    return of_own or _any_requires_grad(tensors)


def _any_requires_grad(tensors: Any) -> bool:
    """Whether a tensor in nested tuples, lists, dicts and dataclasses requires gradients."""
    if isinstance(tensors, Tensor):
        return tensors.requires_grad
    if isinstance(tensors, Mapping):
        tensors = tuple(tensors.values())
    elif dataclasses.is_dataclass(tensors):
        tensors = tuple(getattr(tensors, field.name) for field in dataclasses.fields(tensors))
    return isinstance(tensors, tuple | list) and any(_any_requires_grad(inner) for inner in tensors)


def refuse_replaced_forward(hook: Hook, module: nn.Module) -> None:
    """At level "parameters" it is the stand-in for the module's forward that routes: a pass without it is unrouted."""
    if not hook.routes_parameters or torch.compiler.is_compiling():
        return
    if hook.state.masks and not hook.reached and not private.anything_compiled():
        raise UsageError(
            f"site {hook.name!r}: the forward method of this {type(module).__name__} was replaced after the router "
            "was attached, and level='parameters' routes inside of it. Replace it first, then make the router; or "
            "wrap what stands there."
        )
    hook.reached = False


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
    if private.anything_compiled():
        # Compiled code notes nothing: Dynamo refuses side effects where it exports and inside of checkpoints. So
        # a site that noted nothing may well have run.
        return
    silent = [site.name for position, site in enumerate(sites) if position not in state.ran]
    if silent and not state.warned and (state.model_ran or len(silent) < len(sites)):
        state.warned = True
        warnings.warn(
            f"the model ran, but the sites {preview(silent, 3)} did not: their modules were never called, so they "
            "routed and ablated nothing. Another module may read their weights, or call their forward method "
            "directly.",
            UnroutedWarning,
            stacklevel=3,
        )
