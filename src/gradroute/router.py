"""`Router`: sites attached to a model by hooks, and the labels of the batch in flight. `RoutedModule`: both in one."""

from __future__ import annotations

import copy
import threading
import warnings
from collections.abc import Hashable, Iterable, Mapping, Sequence
from types import MappingProxyType, TracebackType
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from .errors import LabelError, SiteError, SpecError, UnroutedWarning, UsageError, did_you_mean, preview
from .hooks import Labels, MarkRun, SiteHook, State, anything_compiled, drop_orphans, remove_own_forward
from .masks import Mask
from .sites import Site, check_called, check_level, leads_with_time, match
from .spec import RoutingSpec
from .taught import Taught

Sites: TypeAlias = Mapping[str, "RoutingSpec | Site | Sequence[Site]"]


class _Block:
    """``with router(labels)``: sets the labels for the block and puts the previous ones back."""

    def __init__(self, router: Router, labels: Labels) -> None:
        self._router = router
        self._labels = labels
        self._masks = router._resolve(labels)
        self._outer: list[tuple[Any, ...]] = []

    def __enter__(self) -> Router:
        state = self._router._enter()
        if torch.is_grad_enabled():  # before anything is set: it may refuse the labels
            for record in state.records:
                record.note(self._masks)
        self._outer.append((state.labels, state.masks, state.thread))
        state.labels, state.masks = self._labels, self._masks
        if not torch.compiler.is_compiling():
            state.thread = threading.get_ident()
        return self._router

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        state = self._router._state
        innermost = torch.compiler.is_compiling() or state.labels is self._labels
        state.labels, state.masks, state.thread = self._outer.pop() if innermost else (None, (), None)
        if not innermost:
            raise _interleaved()
        if kind is None and not torch.compiler.is_compiling():
            self._router._warn_of_silent_sites()


class _Ablation:
    """``with router.ablated(...)``: switches units off for the block, on top of what is off already."""

    def __init__(self, router: Router, labels: tuple[Hashable, ...]) -> None:
        self._router = router
        self._labels = frozenset(labels)
        self._outer: list[tuple[Any, ...]] = []

    def __enter__(self) -> Router:
        state = self._router._enter()
        hooks = self._router._hooks
        self._outer.append((state.ablated, state.thread, [hook.keep for hook in hooks]))
        ablated = state.ablated | self._labels
        for hook, keep in zip(hooks, self._router._kept_without(ablated), strict=True):
            hook.keep = keep
        state.ablated = ablated
        state.ever_ablated = True
        if not torch.compiler.is_compiling():
            state.thread = threading.get_ident()
        return self._router

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        state = self._router._state
        outer, thread, kept = self._outer.pop()
        innermost = torch.compiler.is_compiling() or state.ablated == outer | self._labels
        state.ablated, state.thread = (outer, thread) if innermost else (frozenset(), None)
        for hook, keep in zip(self._router._hooks, kept, strict=True):
            hook.keep = keep if innermost else None
        if not innermost:
            raise _interleaved()
        if kind is None and not torch.compiler.is_compiling():
            self._router._warn_of_silent_sites()


def _interleaved() -> UsageError:
    return UsageError(
        "blocks of one router overlapped: this one ended while another, begun inside of it, was still open, as "
        "generators and async tasks do that take turns. What ran in between had the labels of the wrong one. End each "
        "block before another task begins one, or give each task its own model and router."
    )


class Router:
    """Routes the gradients of a model that somebody else wrote, by hooks, without changing a line of it.

    Parameters, state-dict keys and outputs stay as they are. Outside of a ``with router(labels)`` block the model
    learns unrouted (the first such training pass warns).

    Args:
        model: Any module.
        sites: From a glob over the names of ``model.named_modules()`` (``*`` matches dots too; the empty pattern is
            the model itself) to a `RoutingSpec`, a `Site`, or several sites. Sites that meet on one tensor compose:
            their masks multiply.

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
        self._model = model
        self._state = State()
        self._hooks: list[SiteHook] = []
        self._groups: list[tuple[str, RoutingSpec]] = []  # one label look-up for each, however many sites share it
        attached: list[tuple[nn.Module, SiteHook]] = []
        names = dict(model.named_modules(remove_duplicate=False))
        for pattern, value in sites.items():
            for site in _as_sites(pattern, value):
                if (pattern, site.spec) not in self._groups:
                    self._groups.append((pattern, site.spec))
                group = self._groups.index((pattern, site.spec))
                for name, module in match(pattern, names).items():
                    check_called(name, model)
                    check_level(name, module, site)
                    time_first = leads_with_time(name, model, site)
                    hook = SiteHook(name, site, group, self._state, module, time_first=time_first)
                    attached.append((module, hook))
        # What a step needs of the specs, found once: comparing specs takes time where they have many labels.
        self._specs = list(dict.fromkeys(spec for _, spec in self._groups))
        self._spec_of_group = [self._specs.index(spec) for _, spec in self._groups]
        self._disagreeing = [pattern for pattern, spec in self._groups if spec.labels != self._specs[0].labels]
        for device in {parameter.device for parameter in model.parameters()}:
            for spec in self._specs:
                spec.masks.warm(device)
        self._attached = {hook.name: module for module, hook in attached}
        self._links = _links(model, self._attached)
        # Nothing is registered before everything is checked, so that a refused router leaves no hook behind.
        _make_compiled_code_look_at_hooks()
        drop_orphans(model)
        self._handles = [model.register_forward_pre_hook(MarkRun(self._state))]
        for module, hook in attached:
            self._hooks.append(hook)
            self._handles += hook.attach(module)

    def __call__(self, labels: Labels) -> _Block:
        """A context manager that routes by these labels whatever the model computes inside it.

        Args:
            labels: One tensor for all sites, whose specs must then name the same labels; or a mapping from each
                pattern of `sites` to its labels. Their shapes and dtypes are those of `gradroute.route`.

        Raises:
            LabelError: The labels do not fit the specs. (What needs the activation's shape is checked in forward.)
            UsageError: The router was removed, or another thread is using it.
        """
        self._check_usable()
        return _Block(self, labels)

    def ablated(self, *labels: Hashable) -> _Ablation:
        """A context manager in which the units of these labels are off: exactly 0, in training and evaluation alike.

        Units that another label or the shared block may teach stay on. Needs no batch labels; inside
        ``with router(labels)`` it composes with them.

        Raises:
            SpecError: No site knows one of the labels.
            UsageError: No label was given, or nothing would be switched off.
        """
        self._check_usable()
        if not labels:
            raise UsageError("ablated() needs the labels whose units are to be off, such as ablated('forget').")
        if all(keep is None for keep in self._kept_without(frozenset(labels))):
            raise UsageError(f"ablating {preview(labels)} would switch nothing off: others teach all its units.")
        return _Ablation(self, labels)

    @property
    def model(self) -> nn.Module:
        """The model that the router is attached to."""
        return self._model

    @property
    def sites(self) -> Mapping[str, tuple[Site, ...]]:
        """The sites by the qualified name of their module; several on one module in the order they were given."""
        found: dict[str, tuple[Site, ...]] = {}
        for hook in self._hooks:
            found[hook.name] = (*found.get(hook.name, ()), hook.site)
        return MappingProxyType(found)

    @property
    def labels(self) -> Labels | None:
        """The labels of the batch in flight; None outside of a ``with router(labels)`` block."""
        return self._state.labels

    def _record_taught(self) -> Taught:
        """Begin to note which units are taught, until the record is taken out of ``_state.records``."""
        record = Taught(spec.width for _, spec in self._groups)
        self._note_block(record)
        self._state.records.append(record)
        return record

    def _note_block(self, record: Taught) -> None:
        """Note the labels of the block that is on, if there is one: it may hold several steps."""
        if self._state.masks:
            record.note(self._state.masks)

    def remove(self) -> None:
        """Take the router's own hooks off the model, and no others. Removing twice is fine."""
        _make_compiled_code_look_at_hooks()
        for handle in self._handles:
            handle.remove()
        for module in self._model.modules():
            remove_own_forward(module, lambda hook: hook in self._hooks)
        self._handles.clear()
        self._hooks.clear()
        self._attached, self._links = {}, []
        self._state.removed = True

    def __repr__(self) -> str:
        lines = [f"  {name!r}: {site!r}," for name, sites in self.sites.items() for site in sites]
        return "\n".join(["Router(", *lines, ")"]) if lines else "Router(removed)"

    def __deepcopy__(self, memo: dict[int, Any]) -> Router:
        clone = type(self).__new__(type(self))
        memo[id(self)] = clone
        clone.__dict__.update(copy.deepcopy(self.__dict__, memo))
        clone._state.orphan = False
        return clone

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._state.orphan = False

    # ------------------------------------------------------------------ for the blocks

    def _check_usable(self) -> None:
        if self._state.removed:
            raise UsageError("this router was removed from its model: make a new one.")
        if not torch.compiler.is_compiling() and self._state.thread not in (None, threading.get_ident()):
            raise UsageError("this router is in use in another thread: give each thread its own model and router.")

    def _enter(self) -> State:
        self._check_usable()
        if not torch.compiler.is_compiling():
            self._check_in_place()
        return self._state

    def _check_in_place(self) -> None:
        """Refuse a model in which another module now stands where a site is, which no hook would route."""
        if all(parent._modules.get(name) is module for parent, name, module in self._links):
            return
        names = {module: name for name, module in self._model.named_modules()}
        gone = [name for name, module in self._attached.items() if module not in names]
        if gone:
            raise UsageError(
                f"the modules of the sites {preview(gone, 3)} are no longer in the model: they were replaced or taken "
                "out after the router was attached, so nothing would route what stands there now. Remove the router "
                "and make a new one."
            )
        for name, module in self._attached.items():
            self._check_wrapper(name, module)
        self._links = _links(self._model, [names[module] for module in self._attached.values()])  # wrapped, or moved

    def _check_wrapper(self, name: str, module: nn.Module) -> None:
        """Refuse what now stands in a site's place, around its module, and learns something of its own: an adapter."""
        wrapper = dict(self._model.named_modules(remove_duplicate=False)).get(name)
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

    def _resolve(self, labels: Labels) -> tuple[Mask, ...]:
        patterns = [pattern for pattern, _ in self._groups]
        if isinstance(labels, Mapping):
            for pattern in labels:
                if pattern not in patterns:
                    raise LabelError(
                        f"labels for {pattern!r}, no pattern of this router. {did_you_mean(pattern, patterns)}"
                    )
            missing = [pattern for pattern in patterns if pattern not in labels]
            if missing:
                raise LabelError(f"no labels for {missing[0]!r}: a mapping needs one entry per pattern.")
            return tuple(spec.masks.resolve(labels[pattern]) for pattern, spec in self._groups)
        if self._disagreeing:
            raise LabelError(
                f"the sites {patterns[0]!r} and {self._disagreeing[0]!r} name different labels, so one label tensor "
                "cannot serve both: pass a mapping, router({pattern: labels, ...})."
            )
        masks = [spec.masks.resolve(labels) for spec in self._specs]
        return tuple(masks[position] for position in self._spec_of_group)

    def _kept_without(self, ablated: frozenset[Hashable]) -> list[Tensor | None]:
        """For each site, which units stay on (bool [width]) without these labels; None where all do."""
        for label in ablated:
            if not any(label in spec.labels for _, spec in self._groups):
                known = {known: None for _, spec in self._groups for known in spec.labels}
                raise SpecError(f"{label!r} is not a label of any site of this router. {did_you_mean(label, known)}")
        masks: list[Tensor | None] = []
        for _, spec in self._groups:
            off = spec.exclusive(*(label for label in ablated if label in spec.labels))
            keep = torch.ones(spec.width, dtype=torch.bool, device="cpu")
            keep[list(off)] = False
            masks.append(keep if off else None)
        return [masks[hook.group] for hook in self._hooks]

    def _warn_of_silent_sites(self) -> None:
        if anything_compiled():
            # Compiled code notes nothing: Dynamo refuses side effects where it exports and inside of checkpoints. So
            # a site that noted nothing may well have run.
            return
        state = self._state
        silent = [hook.name for hook in self._hooks if not hook.ran]
        if silent and not state.warned and (state.model_ran or len(silent) < len(self._hooks)):
            state.warned = True
            warnings.warn(
                f"the model ran, but the sites {preview(silent, 3)} did not: their modules were never called, so they "
                "routed and ablated nothing. Another module may read their weights, or call their forward method "
                "directly.",
                UnroutedWarning,
                stacklevel=3,
            )


class RoutedModule(nn.Module):
    """A module and its `Router` in one, for where labels must travel as an argument: DDP, FSDP, trainers, compile.

    Args:
        model: Any module.
        sites: As for `Router`.

    Attributes:
        module: The model.
        router: Its router.

    Raises:
        SiteError: As `Router`.

    Examples:
        >>> import torch
        >>> model = RoutedModule(torch.nn.Linear(3, 2), {"": RoutingSpec.one_per_label(2)})
        >>> model(torch.ones(1, 3), route_labels=torch.tensor([1])).sum().backward()
        >>> model.module.bias.grad
        tensor([0., 1.])
    """

    def __init__(self, model: nn.Module, sites: Sites) -> None:
        super().__init__()
        self.module = model
        self.router = Router(model, sites)

    def forward(self, *args: Any, route_labels: Labels | None = None, **kwargs: Any) -> Any:
        """The model's output, routed by these labels.

        Args:
            *args: For the model.
            route_labels: As for ``router(labels)``. None is for evaluation only, unless the call is inside a
                ``with routed.router(labels)`` block.
            **kwargs: For the model, its own ``labels=`` included.

        Raises:
            UsageError: No labels in a training pass that computes gradients: it would silently not be routed.
        """
        if route_labels is None:
            if self.training and torch.is_grad_enabled() and self.router.labels is None:
                raise UsageError(
                    "a training forward pass without route_labels would not be routed. Pass route_labels=...; for "
                    "unlabeled data, torch.full((batch,), gradroute.UNLABELED); for evaluation, call eval() or use "
                    "torch.no_grad()."
                )
            return self.module(*args, **kwargs)
        with self.router(route_labels):
            return self.module(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        """Attributes of the model, such as a transformers model's `config`, which trainers ask for."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "module":  # not yet set: during construction, copying or unpickling
                raise
            return getattr(self.module, name)


def _make_compiled_code_look_at_hooks() -> None:
    """Have code that Dynamo compiles notice when hooks come or go, and forget what it compiled so far.

    By default Dynamo sets no guards on a module's hooks (`skip_nnmodule_hook_guards`), so code that was compiled for a
    model without a router, or for an unrouted twin of the same class, would serve a routed one too: unrouted, without a
    word. The import costs a training program nothing, since optimizers import Dynamo as well.
    """
    if torch.compiler.is_compiling():
        return
    from torch._dynamo import config  # noqa: PLC0415  # not when gradroute is imported: it takes as long as importing torch

    config.skip_nnmodule_hook_guards = False
    torch.compiler.reset()


def _links(model: nn.Module, names: Iterable[str]) -> list[tuple[nn.Module, str, nn.Module]]:
    """Each step from the model down to some of its modules: parent, attribute and child."""
    found: dict[tuple[nn.Module, str], nn.Module] = {}
    for name in names:
        parent = model
        for step in name.split(".") if name else ():
            found[parent, step] = parent.get_submodule(step)
            parent = found[parent, step]
    return [(parent, step, child) for (parent, step), child in found.items()]


def _as_sites(pattern: str, value: RoutingSpec | Site | Sequence[Site]) -> list[Site]:
    values = list(value) if isinstance(value, Sequence) else [value]
    sites = [Site(item) if isinstance(item, RoutingSpec) else item for item in values]
    for site in sites:
        if not isinstance(site, Site):
            raise SiteError(f"{pattern!r} needs a RoutingSpec, a Site or several sites; got {type(site).__name__}.")
    return sites
