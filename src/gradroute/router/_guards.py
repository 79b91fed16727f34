"""Everything that could lose a mask without a word, and what is done about it: one function for each fault."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from fnmatch import fnmatchcase
from typing import Any, Protocol, TypeAlias
from weakref import ReferenceType, ref

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle, unserializable_hook

from .. import _torch_private as private
from ..errors import SiteError, UsageError, preview
from ..spec._deferred_mask import BatchMask
from ..unit_dims import channel_dims, unit_dims
from ._attachment import IN_FLIGHT, AttachedSite, Attachment
from ._checkpointing import Pass, current_compiled_pass, current_pass
from ._compiled import CHECKS, AnySite, CompiledSite, ask_when_it_runs
from ._nested import any_requires_grad, map_tensors
from ._parameter_level import stand_in
from ._site import Site, has_learning_tensors, hook_points_of


class Hook(AnySite, Protocol):
    """What the guards of a pass ask of a site's hook."""

    site: Site
    routes_parameters: bool
    may_silence: bool


# ---------------------------------------------------------------------- at each forward pass of a site


def plain_pass(hook: Hook) -> tuple[BatchMask, ...]:
    """The masks of a pass that is eager, in a block of this thread, and recorded once: no check has anything to say.

    Returns:
        One mask for each group of sites; none where the pass is no such one.
    """
    if torch.compiler.is_compiling():
        return ()
    state = hook.state
    masks = IN_FLIGHT.get(state.name, ())
    if (
        len(masks) == 0
        or state.suspended
        or state.orphan
        or hook.may_silence
        or state.thread != threading.get_ident()
        or not torch.is_grad_enabled()
        or not private.is_recorded_once()
    ):
        return ()
    for record in state.records:
        record.note(masks)
    state.recorded.add(hook.position)
    return masks


def check_pass(hook: Hook, module: nn.Module, tensors: Any) -> tuple[BatchMask, ...]:
    """All checks of a forward pass that reaches a site and is no plain one, in the order in which they must be made.

    Returns:
        The masks that this pass is to be routed by, one for each group of sites; none where it is not to be.
    """
    state = hook.state
    if torch.compiler.is_compiling():
        return _check_traced_pass(hook, module, tensors)
    kind, region = current_pass()
    if kind is not Pass.SECOND and torch.is_grad_enabled():
        _record_what_is_taught(hook)
    refuse_stray_copy(hook, module, tensors)
    state.ran.add(hook.position)  # before anything refuses the pass: a site that was called is not silent
    refuse_other_thread(hook)
    if state.suspended:
        return ()
    refuse_other_labels_in_recomputation(hook, kind, region)
    if kind is Pass.SECOND:  # of which the graph is not used; but what is silent is so again
        return masks_of_first_pass(hook, region) if hook.site.spec.has_silent else ()
    masks = state.masks
    if not masks and module.training and _learns(hook, module, tensors):
        warn_of_missing_labels(hook)
    refuse_silence_for_ever(hook, masks)
    if masks:
        _note_whether_apart(hook, kind)
    return masks


def _check_traced_pass(hook: Hook, module: nn.Module, tensors: Any) -> tuple[BatchMask, ...]:
    """The checks that are made of what is traced. The others are made each time that the code runs."""
    refuse_stray_copy(hook, module, tensors)
    if private.is_exporting():
        refuse_deferred_labels(hook)
    masks = hook.state.masks
    refuse_silence_for_ever(hook, masks)
    ask_when_it_runs("pass", hook, trains=len(masks) == 0 and module.training and _learns(hook, module, tensors))
    return masks


def _check_compiled_pass(site: CompiledSite) -> None:
    """The checks of a pass that reaches a site in compiled code."""
    state = site.state
    state.ran.add(site.position)
    if site.labeled_inside:  # by what is computed in the code, whatever the router holds, and noted there
        return
    refuse_deferred_labels(site)
    kind, region = current_compiled_pass()
    if kind is not Pass.SECOND and site.learns:
        _record_what_is_taught(site)
        state.ran_compiled.add(site.position)
    refuse_other_thread(site)
    if state.suspended:
        return
    refuse_other_labels_in_recomputation(site, kind, region, compiled=True)
    if site.trains and not state.masks:
        warn_of_missing_labels(site)


def _check_compiled_parameters(site: CompiledSite) -> None:
    """The stand-in for the forward of a site's module runs in compiled code: it may be called past the hooks."""
    state = site.state
    kind, region = current_compiled_pass()
    _note_reached(site, kind)
    if not site.labeled_inside:
        refuse_deferred_labels(site)
    if not site.labeled_inside and not state.suspended:
        refuse_other_labels_in_recomputation(site, kind, region, compiled=True)


def _check_compiled_reached(site: CompiledSite) -> None:
    if not _take_reached(site) and current_compiled_pass()[0] is not Pass.SECOND:
        raise _replaced_forward(site, "module")


CHECKS["pass"] = _check_compiled_pass
CHECKS["parameters"] = _check_compiled_parameters
CHECKS["reached"] = _check_compiled_reached


def _record_what_is_taught(hook: AnySite) -> None:
    """Tell those who ask (`Isolation`, `watch`) what this pass may teach: a unit taught unnoticed would be frozen."""
    state = hook.state
    for record in state.records:
        if state.masks:  # noted as their block began; again, since a step may have been taken in it
            record.note(state.masks)
        else:
            record.note_unrouted(hook.group)


def refuse_stray_copy(hook: Hook, module: nn.Module, tensors: Any) -> None:
    """A copied model carries copies of the hooks; if the router was not copied with it, no labels ever reach them."""
    if not hook.state.orphan or not torch.is_grad_enabled():
        return
    if module.training:
        raise UsageError(
            f"site {hook.name!r}: this model is a copy of a routed model, and its router was not copied "
            "with it, so nothing can route it. Copy both at once: copy.deepcopy((model, router)) or a RoutedModule."
        )
    if torch.compiler.is_compiling():
        return

    def warn(_: Tensor) -> None:
        hook.state.warn(
            "stray copy",
            f"site {hook.name!r}: a copy of a routed model without its router learns, in evaluation mode, and nothing "
            "routes it. Copy both at once: copy.deepcopy((model, router)) or a RoutedModule.",
            stacklevel=2,
        )

    def watch(x: Tensor) -> Tensor:  # in evaluation it is the backward pass that says whether anything learns
        if x.requires_grad:
            # On what it is a view of: an operation in place on a view takes its hooks out of the graph.
            base = private.base(x)
            (x if base is None else base).register_hook(warn)  # type: ignore[no-untyped-call]
        return x

    map_tensors(tensors, watch)


def refuse_other_thread(hook: AnySite) -> None:
    """A pass in another thread than the block's would be routed by the labels of somebody else's batch."""
    if hook.state.thread not in (None, threading.get_ident()) and not private.in_backward():
        raise UsageError(
            f"site {hook.name!r}: the router holds the labels of another thread. Give each thread its "
            "own model and router, or run them one after the other."
        )


def refuse_deferred_labels(hook: AnySite) -> None:
    """Compiled code takes labels in as it takes in tensors, when it runs: those that come later would not be in it."""
    if hook.state.is_deferred and not hook.state.suspended:
        raise UsageError(
            f"site {hook.name!r}: labels come too late: compiled code takes them in as it runs, and in a `with "
            "router.deferred()` block they are set after it. Run the model uncompiled there, under "
            'torch.compiler.set_stance("force_eager"), or in a `with router(labels)` block.'
        )


def refuse_other_labels_in_recomputation(hook: AnySite, kind: Pass, region: Any, *, compiled: bool = False) -> None:
    """Activation checkpointing runs a pass again in backward, when the router may hold the labels of another batch.

    Compiled code saves labels as any tensor, so that those of a recomputation are taken for those of the first pass.
    """
    state = hook.state
    if kind is Pass.PLAIN:
        return
    now = state.in_flight()
    if kind is Pass.FIRST:
        state.first_passes.note(region, hook.position, now)
        return
    first = state.first_passes.of(region, hook.position)
    if kind is Pass.SECOND and not compiled:
        # Its graph keeps the labels of the first pass; what it computes must be the same.
        if not any(held.ablated == now.ablated for held in first) and (first or state.ever_ablated):
            raise _untrusted(hook, "ablated labels")
    elif not any(held.same_labels(now) and held.ablated == now.ablated for held in first):
        raise _untrusted(hook, "labels", "" if kind is Pass.SECOND else ", or checkpoint with use_reentrant=False")


def masks_for_parameters(hook: Hook) -> tuple[BatchMask, ...]:
    """At level "parameters" a recomputation must save the same tensors as its first pass, and so be routed as that was.

    The masks themselves stay with the graph of the first pass.
    """
    state = hook.state
    if torch.compiler.is_compiling():
        ask_when_it_runs("parameters", hook)
        refuse_silence_for_ever(hook, state.masks)
        return state.masks
    kind, region = current_pass()
    _note_reached(hook, kind)
    if state.suspended:
        return ()
    if kind is Pass.FIRST:
        state.first_passes.note(region, hook.position, state.in_flight())
    if kind is not Pass.SECOND:
        return state.masks
    return masks_of_first_pass(hook, region)


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


def refuse_silence_for_ever(hook: Hook, masks: tuple[BatchMask, ...]) -> None:
    """A program that is exported in a block would have the same places of every batch silent, whatever comes there.

    Raises:
        UsageError: The labels of the block are none of the program's inputs.
    """
    if len(masks) == 0 or not masks[hook.group].silences:
        return
    if torch.compiler.is_compiling():
        for_ever = private.is_exporting() and hook.state.compiled_blocks == 0
    else:
        for_ever = torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
    if for_ever:
        raise UsageError(
            f"site {hook.name!r}: an exported program does not know this block, and would switch off the units that "
            "are silent for its labels in every batch, by the place of an example. Export outside of the block, where "
            "nothing is silent; or give torch.export the labels as an argument: of a RoutedModule, or of gr.route."
        )


def _untrusted(hook: AnySite, what: str, or_else: str = "") -> UsageError:
    return UsageError(
        f"site {hook.name!r}: activation checkpointing recomputes this forward pass inside backward, and the "
        f"router does not hold the {what} that it first ran under. Put backward inside the same "
        f"`with router{'.ablated(...)' if what == 'ablated labels' else '(labels)'}` block as its forward "
        f"pass{or_else}."
    )


def warn_of_missing_labels(hook: AnySite) -> None:
    """A training pass outside of a block learns unrouted. Right in evaluation; in training it is said once."""
    hook.state.warn_unrouted(hook.name, stacklevel=5)


def _note_whether_apart(hook: AnySite, kind: Pass) -> None:
    """A model may compute a site's tensor without gradients, beside what its loss is computed of: see `Silence`."""
    state = hook.state
    apart = not torch.is_grad_enabled() and kind is Pass.PLAIN
    if not apart or state.model_records:
        state.ran_apart[hook.position] = apart and state.ran_apart.get(hook.position, True)


def _learns(hook: Hook, module: nn.Module, tensors: Any) -> bool:
    """Whether anything learns through a pass of this site."""
    if not torch.is_grad_enabled():
        return False
    # What reads an input learns also where the input, such as a batch of data, does not.
    return (hook.routes_parameters and has_learning_tensors(module)) or any_requires_grad(tensors)


def refuse_replaced_forward(hook: Hook, module: nn.Module) -> None:
    """At level "parameters" it is the stand-in for the module's forward that routes: a pass without it is unrouted."""
    if not hook.routes_parameters:
        return
    if torch.compiler.is_compiling():
        if len(hook.state.masks) > 0:
            ask_when_it_runs("reached", hook)
        return
    reached = _take_reached(hook)
    standing = stand_in(module)
    if standing is not None and standing.module is not module:
        raise UsageError(
            f"site {hook.name!r}: this {type(module).__name__} is a shallow copy, and its forward is that of the "
            "module it was copied from, on that one's parameters: copy.copy and nn.DataParallel make such copies. Use "
            "copy.deepcopy((model, router)), DistributedDataParallel, or level='activations'."
        )
    if hook.state.masks and not reached and current_pass()[0] is not Pass.SECOND:
        raise _replaced_forward(hook, type(module).__name__)


def _note_reached(hook: AnySite, kind: Pass) -> None:
    """The stand-in for the forward of a site's module runs."""
    hook.state.ran.add(hook.position)  # also where it is called past the hooks
    if kind is not Pass.SECOND:  # which may break off as soon as it has what it needs
        hook.state.reached[hook.position] += 1


def _take_reached(hook: AnySite) -> bool:
    """Whether the stand-in for the forward ran in the pass of a module that now ends; the pass is forgotten."""
    reached = hook.state.reached[hook.position] > 0
    hook.state.reached[hook.position] -= reached
    return reached


def _replaced_forward(hook: AnySite, module: str) -> UsageError:
    return UsageError(
        f"site {hook.name!r}: the forward method of this {module} was replaced after the router was attached, and "
        "level='parameters' routes inside of it. Replace it first, then make the router; or wrap what stands there."
    )


def held_by_the_caller(x: Tensor, base: Tensor | None, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether a site's tensor is one of its module's arguments, or a view of one.

    Args:
        x: The tensor.
        base: What it is a view of, if it is one.
        args: The arguments by position.
        kwargs: The others.

    The caller may use it again. An in-place operation on the routed one would change the caller's values without its
    gradients, so that there the form is used on which such an operation raises.
    """
    for arg in args:  # a generator would not be traced
        if arg is x or (base is not None and private.is_of(arg, base)):
            return True
        if type(arg) is Tensor:
            continue
        if isinstance(arg, (tuple, list, dict)) and held_by_the_caller(x, base, _items(arg), {}):
            return True
    return len(kwargs) > 0 and held_by_the_caller(x, base, tuple(kwargs.values()), {})


def _items(nest: Any) -> tuple[Any, ...]:
    return tuple(nest.values()) if isinstance(nest, dict) else tuple(nest)


def refuse_work_in_place(hook: Hook, module: nn.Module, masks: tuple[BatchMask, ...]) -> None:
    """A module that works in place on its input writes to a tensor that its caller still holds: see above."""
    if len(masks) == 0 or hook.routes_parameters:
        return
    if not torch.is_grad_enabled() and not masks[hook.group].silences:
        return
    if getattr(module, "inplace", False) is True:
        raise SiteError(
            f"site {hook.name!r}: this {type(module).__name__} works in place (inplace=True) on the input that is to "
            "be routed, and its caller may use that input again, unrouted. Build it with inplace=False, or put the "
            "site on the output of the module before it."
        )


def refuse_cuda_graph(what: str) -> None:
    """A CUDA graph is replayed without the Python around its operations: the labels of now would be in it for ever.

    Raises:
        UsageError: One is being captured.
    """
    if torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing():  # type: ignore[no-untyped-call]
        raise UsageError(
            f"{what} cannot be part of a CUDA graph: each replay would go by the labels that there are now. Capture "
            "what comes before or after it; or leave it to torch.compile."
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


def refuse_two_names(name: str, module: nn.Module, found: Sequence[AttachedSite]) -> None:
    """One module under two names has one set of hooks: every call would be masked by the labels of both.

    Raises:
        SiteError: A site on the same module was named otherwise.
    """
    for site in found:
        if site.module is module and site.name != name:
            raise SiteError(
                f"{site.name!r} and {name!r} are one module: each of its calls would be masked by the labels of both. "
                "Name it once; where its calls need labels of their own, call it through two wrapping modules, one "
                "site each."
            )


def refuse_spec_of_a_part(sites: Iterable[AttachedSite]) -> None:
    """A layer whose units several processes share has a part of them here, and each process another.

    Raises:
        SiteError: A spec has as many units as there are here, and would mean others in each process.
    """
    for site in sites:
        if site.site.is_whole or site.site.axis not in channel_dims(site.module):
            continue
        for name, dim in (unit_dims(site.module, site.site.on) or {}).items():
            weight = private.own_tensors(site.module).get(name)
            if weight is None or not private.is_distributed(weight):
                continue
            here, width = weight.detach().to_local().shape[dim], site.site.spec.width  # type: ignore[attr-defined]
            if here == width != weight.shape[dim]:
                raise SiteError(
                    f"site {site.name!r}: the spec has {width} units, and the layer has {weight.shape[dim]}, of which "
                    f"this process holds {here}: in each process it would mean others. Write the spec for all of them."
                )


# ---------------------------------------------------------------------- when a block begins and ends

Link: TypeAlias = tuple[dict[str, "nn.Module | None"], str, nn.Module]


class Placed:
    """Where the modules of the sites stand in the model, to notice when another stands there.

    Attributes:
        links: Each step from the model down to them: the children of a module, the name of one, and that one.
    """

    def __init__(self, attachment: Attachment) -> None:
        self._attachment = attachment
        self._names = {site.module: site.name for site in attachment.sites}
        self._note(self._names.values())

    def _note(self, names: Iterable[str]) -> None:
        found: dict[tuple[nn.Module, str], nn.Module] = {}
        for name in names:
            parent = self._attachment.model
            for step in name.split(".") if name else ():
                found[parent, step] = parent.get_submodule(step)
                parent = found[parent, step]
        self.links: list[Link] = [(private.children_of(parent), step, child) for (parent, step), child in found.items()]
        # In columns, which are compared without a line of Python for each: this is done twice a block.
        self._tables = [children for children, _, _ in self.links]
        self._steps = [step for _, step, _ in self.links]
        self._modules = [child for _, _, child in self.links]
        self._parents = [private.children_of(parent) for parent in dict.fromkeys(parent for parent, _ in found)]
        self._sizes = list(map(len, self._parents))

    def check(self) -> None:
        """Refuse a model in which a site's module is gone, or to which one was added that a pattern matches.

        Raises:
            UsageError: It is such a one.
        """
        # Modules are equal where they are the same.
        unmoved = list(map(dict.get, self._tables, self._steps)) == self._modules
        if not unmoved:
            refuse_replaced_modules(self._attachment)
        if not unmoved or list(map(len, self._parents)) != self._sizes:
            refuse_modules_that_came_later(self._attachment)
            names = {module: name for name, module in self._attachment.model.named_modules()}
            self._note([names[module] for module in self._names])  # wrapped, or moved


def refuse_replaced_modules(attachment: Attachment) -> None:
    """Another module now stands where a site is, and no hook routes it.

    Raises:
        UsageError: A site's module is gone, or wrapped in one that learns something of its own.
    """
    names = attachment.modules_by_every_name()
    there = set(names.values())
    gone = [site.name for site in attachment.sites if site.module not in there]
    if gone:
        raise UsageError(
            f"the modules of the sites {preview(gone, 3)} are no longer in the model: they were replaced or taken "
            "out after the router was attached, so nothing would route what stands there now. Remove the router "
            "and make a new one."
        )
    for site in attachment.sites:
        refuse_wrapper_that_learns(site.name, site.module, names.get(site.name))


def refuse_wrapper_that_learns(name: str, module: nn.Module, wrapper: nn.Module | None) -> None:
    """What now stands in a site's place, around its module, adds parameters that go around the site: an adapter."""
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


def refuse_modules_that_came_later(attachment: Attachment) -> None:
    """A layer that was added after the router was attached has no hook, though a pattern matches its name.

    Raises:
        UsageError: There is one.
    """
    names = attachment.modules_by_every_name()
    names |= {hook: names[name] for hook, name in hook_points_of(names).items()}
    for number, group in enumerate(attachment.groups):
        known = [site.module for site in attachment.sites if site.group == number]
        inside = {inner for module in known for inner in module.modules()}
        later = [
            name for name, module in names.items() if name and fnmatchcase(name, group.pattern) and module not in inside
        ]
        wrapped = [name for name in later if any(module in known for module in names[name].modules())]
        if len(later) > len(wrapped):
            raise UsageError(
                f"pattern {group.pattern!r} also matches {preview([n for n in later if n not in wrapped], 3)}, which "
                "came into the model after the router was attached, so nothing would route it. Remove the router, and "
                "make a new one."
            )


# ---------------------------------------------------------------------- when a router is removed


def refuse_recomputation_without_the_router(attachment: Attachment) -> None:
    """What activation checkpointing runs again later would be unrouted: that raises then, or is warned of now."""
    for region, passes in attachment.state.first_passes.regions():
        if not any(held.masks or held.ablated for held in passes):
            continue
        if hasattr(region, "register_prehook"):  # reentrant: the second pass makes the graph
            region.register_prehook(_refuse_recomputation)
        elif any(held.ablated or any(mask.silences for mask in held.masks) for held in passes):
            attachment.state.warn(
                "recomputed later",
                "this router is removed while activation checkpointing is still to run a forward pass again in "
                "backward, in which nothing will be silent or ablated then. Call backward first, or drop its graph.",
                stacklevel=3,
            )


def _refuse_recomputation(_: Any) -> None:
    raise UsageError(
        "activation checkpointing recomputes a forward pass inside backward, and the router that it first ran under "
        "was removed. Call backward first, and then router.remove()."
    )


# ---------------------------------------------------------------------- what blocks do that overlap


def overlapping() -> UsageError:
    """Blocks that overlap, as those of generators and async tasks do, hold the labels of the wrong one in between."""
    return UsageError(
        "blocks of one router overlapped: this one ended while another, begun inside of it, was still open, as "
        "generators and async tasks do that take turns. What ran in between had the labels of the wrong one. End each "
        "block before another task begins one, or give each task its own model and router."
    )


class InFront:
    """Notices forward hooks of others that came to stand before those of the sites: they see what is not routed yet.

    Args:
        attachment: What the router knows of itself.
        before: The hooks that see a site's tensor before the site's own.
    """

    def __init__(self, attachment: Attachment, before: Callable[[AttachedSite], list[Any]]) -> None:
        self._attachment = attachment
        self._before = before
        self._sites = [site for site in attachment.sites if site.site.on == "output" and not site.routes_parameters]
        self._look()

    def _look(self) -> None:
        self._tables = [private.forward_hook_table(site.module) for site in self._sites]
        self._first = self._first_now()

    def _first_now(self) -> list[int | None]:
        """The number of the first hook of each site's module."""
        return [next(iter(table), None) for table in self._tables]

    def check(self) -> None:
        """Warn once of such hooks, as a block begins."""
        of_all = private.forward_hooks_of_all_modules()
        if self._attachment.state.muted or (self._first_now() == self._first and not of_all):
            return
        self._look()
        for site in self._sites:
            theirs = [hook for hook in (*of_all.values(), *self._before(site)) if _is_foreign(hook)]
            if theirs:
                name = getattr(theirs[0], "__name__", type(theirs[0]).__name__)
                self._attachment.state.warn(
                    ("in front", site.name),
                    f"site {site.name!r}: the forward hook {name!r} sees what the module returns before it is routed: "
                    "it was registered for all modules, or with prepend=True after the router was made. A loss on what "
                    "it sees teaches every unit. Register it on the module, without prepend=True.",
                    stacklevel=5,
                )
                return

    def __reduce__(self) -> tuple[Any, ...]:
        return InFront, (self._attachment, self._before)  # a copy's modules have tables of their own


def _is_foreign(hook: Any) -> bool:
    """Whether a hook is of neither torch nor gradroute, which only look."""
    owners = (type(getattr(hook, "__self__", hook)).__module__, getattr(hook, "__module__", None) or "")
    return not any(owner.split(".")[0] in ("torch", "gradroute") for owner in owners)


class Silence:
    """Notices, from block to block, sites that do not run: their modules are bypassed, and route nothing."""

    def __init__(self, attachment: Attachment) -> None:
        self._attachment = attachment
        self._names = [site.name for site in attachment.sites]
        # Weak, since sharding, for one, puts others in their place.
        self._parameters = [
            [ref(p) for p in site.own_parameters().values() if p.requires_grad] for site in attachment.sites
        ]
        self._all_parameters = list(dict.fromkeys(p for own in self._parameters for p in own))
        self._number = len(self._all_parameters)
        self._there: list[nn.Parameter] = []
        self._outer: list[tuple[set[int], set[int], dict[int, bool], bool, bool]] = []
        self._handles: list[RemovableHandle] = []  # on the parameters of sites that were silent in the last block
        self._earlier: list[
            ReferenceType[BatchMask]
        ] = []  # the masks of blocks whose backward pass may be still to come
        self._expected: set[int] = set()  # sites whose compiled code, which holds no mask, may have one still to come

    def close(self) -> None:
        """Look at no parameters any more."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def check(self) -> None:
        """Before a block begins: look for the parameters. If they are gone, others were put in their place.

        Raises:
            SiteError: The others are divided, and a spec is for the part of them that is here.
        """
        self._there = [p for one in self._all_parameters if (p := one()) is not None]
        if len(self._there) != self._number:
            refuse_spec_of_a_part(self._attachment.sites)
            self._number = len(self._there)

    def begin(self) -> None:
        """A block begins."""
        state = self._attachment.state
        self.close()
        self._expected = {n for n in self._expected if not self._has_learned(n)}
        private.mark_gradients(self._there)
        self._there = []
        self._outer.append((state.ran, state.recorded, state.ran_apart, state.model_ran, self._waiting()))
        state.ran, state.recorded, state.ran_apart = set(), set(), {}
        state.model_ran, state.model_records = False, False

    def end(self, masks: tuple[BatchMask, ...], *, failed: bool) -> None:
        """A block ends, under these masks; after an error there is nothing to say."""
        state = self._attachment.state
        ran, model_ran = state.ran | state.recorded, state.model_ran
        apart = [n for n, never_recorded in state.ran_apart.items() if never_recorded and n not in state.recorded]
        if not ran <= state.ran_compiled:  # what Dynamo keeps of masks says nothing of a graph
            self._earlier += [ref(mask) for mask in masks]
        outer_ran, state.recorded, state.ran_apart, outer_model_ran, waiting = self._outer.pop()
        all_ran = len(ran) == len(self._parameters)  # then, as mostly, there is no need to look at each
        state.ever_ran |= ran
        state.ran, state.model_ran = outer_ran | ran, outer_model_ran or model_ran
        self._expected |= {n for n in state.ran_compiled if not self._has_learned(n)}
        state.ran_compiled.clear()
        if failed or state.muted:
            return
        silent = [] if all_ran else [n for n in range(len(self._parameters)) if n not in ran]
        bypassed: list[int] = []
        # Several processes write to ``.grad`` what all of them found: an expert that is silent here may have run there.
        # But not if nothing of the model ran: then what learned is a program that was exported of it.
        found_elsewhere = private.several_processes() and (model_ran or len(ran) > 0)
        if not waiting and not found_elsewhere:
            learned = {n for n in silent if self._has_learned(n)}
            bypassed = sorted(learned - self._expected)
            self._expected -= learned
        never = [n for n in silent if n not in state.ever_ran and n not in bypassed]
        if apart:
            self._warn_apart(apart)
        if bypassed:
            self._warn_bypassed(bypassed)
        if never and (model_ran or ran):
            names = [self._names[n] for n in never]
            state.warn(
                ("silent", *names),
                f"the model ran, but the sites {preview(names, 3)} did not: their modules were never called, so they "
                "routed and ablated nothing. Another module may read their weights, or call their forward method "
                "directly.",
                stacklevel=3,
            )
        for n in silent:
            if not waiting and n not in bypassed and n not in self._expected:
                self._watch(n, self._warn_bypassed)
        for n in self._expected:
            self._watch(n, self._expected.difference_update)

    def _watch(self, position: int, what_then: Callable[[list[int]], None]) -> None:
        """Until the next block begins, notice when the site's parameters learn: backward may come after its block."""

        @unserializable_hook  # type: ignore[untyped-decorator]
        def learns(_: Tensor) -> None:
            what_then([position])

        self._handles += [p.register_hook(learns) for p in self._own(position)]  # type: ignore[no-untyped-call]

    def __reduce__(self) -> tuple[Any, ...]:
        return Silence, (self._attachment,)  # a copy's router is in no block

    def _warn_bypassed(self, positions: list[int]) -> None:
        names = [self._names[n] for n in positions]
        self._attachment.state.warn(
            ("bypassed", *names),
            f"the parameters of the sites {preview(names, 3)} got gradients from a `with router(labels)` block in "
            "which their modules were not called, so that they were not routed. Call the module itself, and not "
            "another method of it, its forward, or a function on its weights.",
            stacklevel=4,
        )

    def _warn_apart(self, positions: list[int]) -> None:
        names = [self._names[n] for n in positions]
        self._attachment.state.warn(
            ("apart", *names),
            f"the sites {preview(names, 3)} ran without gradients, as under torch.no_grad, in a pass of the model that "
            "has them: nothing learns through what they made, so that nothing was routed there. Put the sites on what "
            "the loss is computed of.",
            stacklevel=4,
        )

    def _own(self, position: int) -> list[nn.Parameter]:
        return [p for one in self._parameters[position] if (p := one()) is not None]

    def _has_learned(self, position: int) -> bool:
        """Whether a parameter of the site got a gradient since a block began last."""
        return any(map(private.has_learned, self._own(position)))

    def _waiting(self) -> bool:
        """Whether a graph that was routed in an earlier block is there, and was not yet gone through backward."""
        self._earlier = [held for held in self._earlier if (mask := held()) is not None and not mask.seen_in_backward]
        return bool(self._earlier)
