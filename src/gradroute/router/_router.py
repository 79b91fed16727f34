"""`Router`: sites attached to a model by hooks."""

from __future__ import annotations

import copy
from collections.abc import Hashable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, TypeAlias, cast

import torch
from torch import nn

from .. import _torch_private as private
from ..errors import SiteError, UsageError, preview
from ..spec._spec import RoutingSpec
from ._attachment import AttachedSite, Attachment, Group, Labels
from ._blocks import Ablated, Deferred, Labeled
from ._deferred import Later, refuse_deferred
from ._hooks import MarkRun, SiteHook, drop_orphans, hooks_before, remove_own_forward
from ._in_flight import State
from ._nested import argument_names
from ._site import Site, check_level, hook_points_of, leads_with_time, match
from .guards._in_front import InFront
from .guards._placed import Placed
from .guards._removed import refuse_recomputation_without_the_router, warn_of_removal_in_a_block
from .guards._taken_off import TakenOff
from .guards._uncalled import Uncalled
from .guards._unfit_sites import (
    refuse_module_that_is_never_called,
    refuse_scripted,
    refuse_spec_of_a_part,
    refuse_two_names,
)

Sites: TypeAlias = Mapping[str, "RoutingSpec | Site | Sequence[Site]"]
"""Where to route: from patterns of module names to a spec, a site, or several sites."""


class Router:
    """Routes the gradients of a model that somebody else wrote, by hooks, without changing a line of it.

    Parameters and state-dict keys stay as they are, and so do outputs unless a spec has silent units. Outside of a
    ``with router(labels)`` block the model learns unrouted (the first such training pass warns).

    Args:
        model: Any module.
        sites: From a glob over the names of ``model.named_modules()`` (``*`` matches dots too; the empty pattern is
            the model itself) to a `RoutingSpec`, a `Site`, or several sites. Sites that meet on one tensor compose:
            their masks multiply. A TransformerLens bridge's hook points go by the names of its ``hook_dict``, too.

    Raises:
        SiteError: A pattern matches no module (the message names the nearest), or a module together with one inside
            it, or one that is never called.

    Examples:
        >>> import torch
        >>> model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.Linear(2, 1))
        >>> router = Router(model, {"0": RoutingSpec.one_per_label(2)})
        >>> with router(torch.tensor([1, 1])):
        ...     model(torch.ones(2, 3)).sum().backward()
        >>> model[0].weight.grad[0]  # no example of label 0: its unit learns nothing
        tensor([0., 0., 0.])
        >>> router.remove()

    References:
        Cloud et al., 2024 (arXiv:2410.04332).
    """

    def __init__(self, model: nn.Module, sites: Sites) -> None:
        if not isinstance(model, nn.Module):
            raise SiteError(f"model must be a torch.nn.Module; got {type(model).__name__}.")
        if not isinstance(sites, Mapping) or not sites:
            raise SiteError(f"sites must map module names to specs, such as {{'encoder.fc': spec}}; got {sites!r}.")
        state = State()
        sites_found, groups = _found(model, sites)
        self._attachment = Attachment(model, state, sites_found, groups)
        self._placed = Placed(self._attachment)
        self._uncalled = Uncalled(self._attachment)
        refuse_spec_of_a_part(sites_found)
        # Nothing is registered before everything is checked, so that a refused router leaves no hook behind.
        private.make_compiled_code_look_at_hooks()
        private.leave_to_python(MarkRun.__call__)
        drop_orphans(model)
        self._handles = [model.register_forward_pre_hook(MarkRun(state))]
        self._hooks: list[SiteHook] = []
        for position, site in enumerate(sites_found):
            hook = SiteHook(position, site, state, time_first=leads_with_time(site.name, model, site.site))
            self._hooks.append(hook)
            self._handles += hook.attach(site.module)
        self._in_front = InFront(self._attachment, hooks_before)
        self._taken_off = TakenOff(self._attachment, self._handles)

    def __call__(self, labels: Labels) -> Labeled[Router]:
        """A context manager that routes by these labels whatever the model computes inside it.

        Args:
            labels: One tensor for all sites, whose specs must then name the same labels; or a mapping from each
                pattern of `sites` to its labels. Their shapes and dtypes are those of `gradroute.route`.

        Raises:
            LabelError: The labels do not fit the specs. (What needs the activation's shape is checked in forward.)
            UsageError: The router was removed, or another thread is using it.
        """
        self._attachment.check_usable()
        return Labeled(self, labels)

    def deferred(self) -> Deferred[Router]:
        """A context manager for labels that are known only after the forward pass, such as a verdict on its outcome.

        It gives an object whose ``set(labels)`` takes them, as ``router(labels)`` does: once, any time before backward,
        inside the block or after it. They are for all that was and is computed in this block. A block that nobody calls
        backward for needs none.

        Raises:
            UsageError: The router was removed, or another thread is using it. In a forward pass: it needs the labels
                at once (a module of an unknown kind with a site of level "parameters" on its input, `torch.func`,
                compiled code). In backward: no labels were set.

        Examples:
            >>> import torch
            >>> model = torch.nn.Linear(3, 2)
            >>> router = Router(model, {"": RoutingSpec.one_per_label(2)})
            >>> with router.deferred() as later:
            ...     actions = model(torch.ones(4, 3))
            >>> later.set((actions.detach().sum(-1) > 1e9).long())  # an overseer looks at the episode: all of label 0
            >>> actions.sum().backward()
            >>> model.bias.grad
            tensor([4., 0.])
        """
        self._attachment.check_usable()
        if torch.compiler.is_compiling():
            raise UsageError(
                "a `with router.deferred()` block cannot be part of compiled code: compile what is in it, or run it "
                "uncompiled."
            )
        for group in self._attachment.groups:
            refuse_deferred(group.pattern, group.spec)
        return Deferred(self)

    def ablated(self, *labels: Hashable) -> Ablated[Router]:
        """A context manager in which the units of these labels are off: exactly 0, in training and evaluation alike.

        Units that another label or the shared block may teach stay on: those that its route names, whatever it has
        `elsewhere`. `gradroute.UNTAUGHT` among the labels stands for the units that no label teaches. Needs no batch
        labels; inside ``with router(labels)`` it composes with them. What is off for the examples of one label only is
        said by the spec, ``RoutingSpec(..., silent=...)``.

        Raises:
            SpecError: No site knows one of the labels.
            UsageError: No label was given, or nothing would be switched off.
        """
        self._attachment.check_usable()
        if not labels:
            raise UsageError("ablated() needs the labels whose units are to be off, such as ablated('forget').")
        if all(keep is None for keep in self._attachment.kept_without(frozenset(labels))):
            raise UsageError(f"ablating {preview(labels)} would switch nothing off: others teach all its units.")
        return Ablated(self, labels)

    @property
    def model(self) -> nn.Module:
        """The model that the router is attached to."""
        return self._attachment.model

    @property
    def sites(self) -> Mapping[str, tuple[Site, ...]]:
        """The sites by the qualified name of their module; several on one module in the order they were given."""
        by_name = self._attachment.by_name
        return MappingProxyType({name: tuple(each.site for each in there) for name, there in by_name.items()})

    @property
    def labels(self) -> Labels | None:
        """The labels of the batch in flight; None outside of a block, and in one whose labels are still to come."""
        held = self._attachment.state.labels
        return held.labels if isinstance(held, Later) else cast("Labels | None", held)

    def remove(self) -> None:
        """Take the router's own hooks off the model, and no others. Removing twice is fine.

        End its blocks first: what they compute afterwards is not routed, which is warned of. Call backward first, too:
        what reentrant activation checkpointing would run again without the router raises then.
        """
        warn_of_removal_in_a_block(self._attachment)
        private.make_compiled_code_look_at_hooks()
        for handle in self._handles:
            handle.remove()
        for module in self.model.modules():
            remove_own_forward(module, lambda hook: hook in self._hooks)
        self._handles.clear()
        self._hooks.clear()
        self._uncalled.close()
        refuse_recomputation_without_the_router(self._attachment)
        self._attachment.sites = ()
        self._attachment.state.removed = True

    def __repr__(self) -> str:
        lines = [f"  {name!r}: {site!r}," for name, sites in self.sites.items() for site in sites]
        return "\n".join(["Router(", *lines, ")"]) if lines else "Router(removed)"

    def __deepcopy__(self, memo: dict[int, Any]) -> Router:
        clone = type(self).__new__(type(self))
        memo[id(self)] = clone
        clone.__dict__.update(copy.deepcopy(self.__dict__, memo))
        clone._attachment.state.orphan = False
        return clone

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._attachment.state.orphan = False


def _found(model: nn.Module, sites: Sites) -> tuple[list[AttachedSite], list[Group]]:
    """What the patterns lead to in this model.

    Raises:
        SiteError: A pattern matches no module, or one that cannot be routed as asked.
    """
    found: list[AttachedSite] = []
    groups: list[Group] = []
    names = dict(model.named_modules(remove_duplicate=False))
    hook_points = hook_points_of(names)
    for pattern, value in sites.items():
        if not isinstance(pattern, str):
            raise SiteError(
                f"sites are named by patterns over the names of named_modules(); got a {type(pattern).__name__}. Its "
                f"name: {next((repr(name) for name, module in names.items() if module is pattern), 'none')}."
            )
        for site in _as_sites(pattern, value):
            if (pattern, site.spec) not in groups:
                groups.append(Group(pattern, site.spec))
            group = groups.index(Group(pattern, site.spec))
            for name, module in match(pattern, names, hook_points).items():
                refuse_module_that_is_never_called(name, model)
                refuse_scripted(name, names)
                refuse_two_names(name, module, found)
                check_level(name, module, site)
                arguments = argument_names(module) if site.on == "input" else []
                found.append(AttachedSite(name, site, group, module, tuple(arguments)))
    return found, groups


def _as_sites(pattern: str, value: RoutingSpec | Site | Sequence[Site]) -> list[Site]:
    values = list(value) if isinstance(value, Sequence) else [value]
    sites = [Site(item) if isinstance(item, RoutingSpec) else item for item in values]
    for site in sites:
        if not isinstance(site, Site):
            raise SiteError(f"{pattern!r} needs a RoutingSpec, a Site or several sites; got {type(site).__name__}.")
    return sites
