"""What a `Router` puts on a model: hooks, and the state that they read, which knows neither model nor router."""

from __future__ import annotations

import dataclasses
import itertools
import sys
import threading
import warnings
from collections.abc import Callable, Hashable, Mapping
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from .errors import RoutingError, UnroutedWarning, UsageError
from .functional import route_mask
from .masks import Mask
from .parameters import OwnForward
from .recompute import Ledger, Pass, current_pass
from .sites import Site, argument_names, edit_arguments, edit_output
from .taught import Taught
from .units import spread
from .ways import Way

Labels: TypeAlias = "Tensor | Mapping[str, Tensor]"


# The masks of the block that each router is in, by the name of its state. Not an attribute of the state, because of
# Dynamo: what it reaches through a module of torch.nn, such as a hook, it takes for a part of that module, whose shapes
# never change. Every batch size would compile anew.
IN_FLIGHT: dict[str, tuple[Mask, ...]] = {}
_NUMBERS = itertools.count()


class State:
    """What the hooks of one router read: the labels of the batch in flight, and what is ablated.

    It lives apart from the router so that the hooks, which a model's copies and pickles carry along, never hold the
    model. A copied state is an orphan until a router that is copied with it claims it.
    """

    def __init__(self) -> None:
        self.name = f"router {next(_NUMBERS)}"
        self.labels: Labels | None = None
        self.ablated: frozenset[Hashable] = frozenset()
        self.thread: int | None = None
        self.ever_ablated = False
        self.orphan = False
        self.removed = False
        self.model_ran = False
        self.warned = False
        self.suspended = False  # while an audit looks at the gradients as they would be without routing
        self.ledger = Ledger()
        self.records: list[Taught] = []  # of those who ask which units are taught

    @property
    def masks(self) -> tuple[Mask, ...]:
        """The masks of the batch in flight, one for each group of sites; none outside of a block."""
        return () if self.suspended else IN_FLIGHT.get(self.name, ())

    @masks.setter
    def masks(self, masks: tuple[Mask, ...]) -> None:
        if masks:
            IN_FLIGHT[self.name] = masks
        else:
            IN_FLIGHT.pop(self.name, None)

    @property
    def active(self) -> bool:
        """Whether a hook has anything to edit."""
        return bool(self.masks) or bool(self.ablated)

    def key(self) -> tuple[Tensor | None, Hashable]:
        """The tensor by whose identity `Ledger` knows the labels; and all of them, with how often they were written."""
        if self.labels is None:
            return None, ()
        labels = list(self.labels.values()) if isinstance(self.labels, Mapping) else [self.labels]
        return labels[0], tuple((id(one), 0 if one.is_inference() else one._version) for one in labels)

    def __deepcopy__(self, memo: dict[int, Any]) -> State:
        return _orphan(self.removed)

    def __reduce__(self) -> tuple[Any, ...]:
        return (_orphan, (self.removed,))


def _orphan(removed: bool) -> State:
    state = State()
    state.orphan = True
    state.removed = removed
    return state


class SiteHook:
    """One site on one module: a plain callable, so that hooks copy and pickle with the model."""

    def __init__(self, name: str, site: Site, group: int, state: State, module: nn.Module, *, time_first: bool) -> None:
        self.name = name
        self.site = site
        self.group = group
        self.state = state
        self.time_first = time_first
        self.arguments = argument_names(module) if site.on == "input" else []
        self.keep: Tensor | None = None  # bool [width], while a label of this site is ablated
        self.ran = False
        self.reached = False  # by the forward pass that is on, at level "parameters"
        # Nothing is upstream of an embedding's indices: there, masking the activation is all there is to do.
        self.routes_parameters = site.level == "parameters" and not isinstance(module, nn.Embedding)

    def __getstate__(self) -> dict[str, Any]:
        # A copy's router is in no block, so nothing would ever switch on again what is off in this one.
        return {**self.__dict__, "keep": None}

    def attach(self, module: nn.Module) -> list[torch.utils.hooks.RemovableHandle]:
        """Register with the site's module."""
        if self.routes_parameters:
            own = OwnForward.of(module)
            (own.writers if self.site.on == "output" else own.readers).append(self)
        if self.site.on == "input":
            handles = [module.register_forward_pre_hook(self.on_input, with_kwargs=True)]
            if self.routes_parameters:
                handles.append(module.register_forward_hook(self.after_input))
            return handles
        # First among the hooks: whoever else looks at the output sees the routed one, and cannot go around it.
        return [module.register_forward_hook(self.on_output, prepend=True)]

    def on_output(self, module: nn.Module, args: Any, output: Any) -> Any:
        """The forward hook."""
        self._before(module, output)
        self._check_reached(module)
        if not self.state.active:
            return None
        return edit_output(output, self.site.path, self._edit, site=self.name)

    def on_input(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The forward pre-hook."""
        self._before(module, (args, kwargs))
        if not self.state.active:
            return None
        return edit_arguments(args, kwargs, self.site.path, self.arguments, self._edit, site=self.name)

    def after_input(self, module: nn.Module, args: Any, output: Any) -> None:
        """The forward hook of a site that routes the parameters which read its input."""
        self._check_reached(module)

    def _check_reached(self, module: nn.Module) -> None:
        """At level "parameters" it is the stand-in for the module's forward that routes: refuse a pass without it."""
        if not self.routes_parameters or torch.compiler.is_compiling():
            return
        if self.state.masks and not self.reached and not anything_compiled():
            raise UsageError(
                f"site {self.name!r}: the forward method of this {type(module).__name__} was replaced after the router "
                "was attached, and level='parameters' routes inside of it. Replace it first, then make the router; or "
                "wrap what stands there."
            )
        self.reached = False

    def way(self) -> Way | None:
        """The mask of the batch in flight, on its way to this site's tensor; None outside of a block."""
        masks = self.state.masks
        if not torch.compiler.is_compiling() and current_pass() is Pass.SECOND and not self.state.suspended:
            # Of the first pass, tensors were saved, masks among them, so the block must be the same. Asked here, since
            # a recomputation may stop before the forward hooks.
            key, labels = self.state.key()
            if not self.state.ledger.settle(key, (id(self), self.state.ablated, "labels", labels)):
                raise self._untrusted("labels")
        if not masks:
            return None
        if not torch.compiler.is_compiling():
            self.ran = self.reached = True
        site = self.site
        return Way(masks[self.group], site.dim, site.path, self.name, self.time_first)

    def _edit(self, x: Tensor) -> Tensor:
        masks = self.state.masks
        if masks and not self.routes_parameters:
            if self.time_first:
                self.way().check_order(x)  # type: ignore[union-attr]  # there are masks
            try:
                x = route_mask(x, masks[self.group], self.site.dim, replacing=True)
            except RoutingError as error:
                raise type(error)(f"site {self.name!r}: {error}") from None
        if self.keep is not None:
            x = torch.where(spread(self.keep.to(x.device), x, self.site.dim), x, 0)
        return x

    def _before(self, module: nn.Module, tensors: Any) -> None:
        """All that could lose the mask without a word: a stray copy, another thread, a recomputation, no labels."""
        state = self.state
        compiling = torch.compiler.is_compiling()
        kind = Pass.PLAIN if compiling else current_pass()
        if state.records and torch.is_grad_enabled() and kind is not Pass.SECOND:
            for record in state.records:
                if not state.masks:
                    record.note_unrouted(self.group)
                elif not compiling:  # a pass after a step in the same block; compiled code has no need to look
                    record.note(state.masks)
        if self.state.orphan and torch.is_grad_enabled() and module.training:
            raise UsageError(
                f"site {self.name!r}: this model is a copy of a routed model, and its router was not copied "
                "with it, so nothing can route it. Copy both at once: copy.deepcopy((model, router)) or a RoutedModule."
            )
        if compiling:
            return
        self.ran = True  # before anything refuses the pass: a site that was called is not silent
        self._check_thread()
        if state.suspended:
            return
        self._check_pass(kind)
        if state.masks or state.warned or kind is Pass.SECOND:  # of that one, the graph is not used
            return
        # No labels: right in evaluation. In training, under ablation too, the gradients are whole: say so once.
        if module.training and torch.is_grad_enabled() and self._learns(module, tensors):
            state.warned = True
            warnings.warn(
                f"site {self.name!r} ran a training forward pass with no labels set: its gradients are not routed. Put "
                "the forward pass inside `with router(labels):`, or silence gradroute.UnroutedWarning if you mean it.",
                UnroutedWarning,
                stacklevel=3,
            )

    def _learns(self, module: nn.Module, tensors: Any) -> bool:
        # What reads an input learns also where the input, such as a batch of data, does not.
        of_own = self.routes_parameters and any(parameter.requires_grad for parameter in module.parameters())
        return of_own or _any_requires_grad(tensors)

    def _check_thread(self) -> None:
        if self.state.thread not in (None, threading.get_ident()) and torch._C._current_graph_task_id() == -1:
            raise UsageError(
                f"site {self.name!r}: the router holds the labels of another thread. Give each thread its "
                "own model and router, or run them one after the other."
            )

    def _check_pass(self, kind: Pass) -> None:
        state = self.state
        if kind is Pass.PLAIN:
            return
        # Reentrant recomputation must find the labels of its first pass again; both kinds must find its ablation.
        key, labels = state.key()
        call, under_labels = (id(self), state.ablated), (id(self), state.ablated, "labels", labels)
        if kind is Pass.FIRST:
            state.ledger.note(None, call)
            state.ledger.note(key, under_labels)
        elif kind is Pass.SECOND:
            if not state.ledger.settle(None, call) and state.ever_ablated:
                raise self._untrusted("ablated labels")
        elif not state.ledger.settle(key, under_labels):
            raise self._untrusted("labels", ", or checkpoint with use_reentrant=False")

    def _untrusted(self, what: str, or_else: str = "") -> UsageError:
        return UsageError(
            f"site {self.name!r}: activation checkpointing recomputes this forward pass inside backward, and the "
            f"router does not hold the {what} that it first ran under. Put backward inside the same "
            f"`with router{'.ablated(...)' if what == 'ablated labels' else '(labels)'}` block as its forward "
            f"pass{or_else}."
        )


class MarkRun:
    """Notes that the model ran, so that sites that did not run can be told from a model that was not called."""

    def __init__(self, state: State) -> None:
        self.state = state

    def __call__(self, module: nn.Module, args: Any) -> None:
        """The forward pre-hook of the model."""
        if not torch.compiler.is_compiling():
            self.state.model_ran = True


def drop_orphans(model: nn.Module) -> None:
    """Take off the hooks that a copied model carries of a router that was not copied with it."""
    for module in model.modules():
        for hooks, flags in (
            (module._forward_hooks, module._forward_hooks_with_kwargs),
            (module._forward_pre_hooks, module._forward_pre_hooks_with_kwargs),
        ):
            for key, hook in list(hooks.items()):
                owner = getattr(hook, "__self__", hook)
                if isinstance(owner, SiteHook | MarkRun) and owner.state.orphan:
                    del hooks[key]
                    flags.pop(key, None)
        remove_own_forward(module, lambda hook: hook.state.orphan)


def remove_own_forward(module: nn.Module, condition: Callable[[Any], bool]) -> None:
    """Take the hooks for which the condition holds off the stand-in for a module's forward, if it has one."""
    own = module.__dict__.get("forward")
    if isinstance(own, OwnForward):
        for hook in [*own.writers, *own.readers]:
            if condition(hook):
                own.remove(hook)


def anything_compiled() -> bool:
    """Whether Dynamo has compiled anything since the last router came or went."""
    dynamo = sys.modules.get("torch._dynamo")
    return dynamo is not None and getattr(dynamo.convert_frame, "FRAME_COUNTER", 1) > 0


def _any_requires_grad(tensors: Any) -> bool:
    """Whether a tensor in nested tuples, lists, dicts and dataclasses requires gradients."""
    if isinstance(tensors, Tensor):
        return tensors.requires_grad
    if isinstance(tensors, Mapping):
        tensors = tuple(tensors.values())
    elif dataclasses.is_dataclass(tensors):
        tensors = tuple(getattr(tensors, field.name) for field in dataclasses.fields(tensors))
    return isinstance(tensors, tuple | list) and any(_any_requires_grad(inner) for inner in tensors)
