"""The inside door: what a router knows of itself.

`attachment_of(router)` is the only way in for `optim`, `surgery`, `diagnostics` and `testing`.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple, Protocol, TypeAlias

import torch
from torch import Tensor, nn

from ..errors import LabelError, SpecError, UsageError, did_you_mean
from ..spec._checks import UNTAUGHT
from ..spec._masks import Mask
from ..spec._spec import RoutingSpec
from ._in_flight import IN_FLIGHT, State
from ._site import Site, routed_parameters
from ._taught import Taught

Labels: TypeAlias = "Tensor | Mapping[str, Tensor]"
"""The labels of a batch: one tensor for all sites, or one for each pattern of them; see `gradroute.route`."""


class Group(NamedTuple):
    """What shares one look-up of labels: the sites of one pattern that have one spec."""

    pattern: str
    spec: RoutingSpec


@dataclass(frozen=True, eq=False)
class AttachedSite:
    """One site on one module of the model.

    Attributes:
        name: The module's qualified name.
        site: What was asked for.
        group: The position of its group in `Attachment.groups`.
        module: The module itself.
        arguments: The names of its positional arguments; empty for a site on the output.
    """

    name: str
    site: Site
    group: int
    module: nn.Module
    arguments: tuple[str, ...] = ()

    @property
    def routes_parameters(self) -> bool:
        """Whether the module's own parameters see the mask, and not the activation."""
        # Nothing is upstream of an embedding's indices: there, masking the activation is all there is to do.
        return self.site.level == "parameters" and not isinstance(self.module, nn.Embedding)

    def own_parameters(self) -> dict[str, nn.Parameter]:
        """Its module's parameters by their names in the model; of a site that names some, those."""
        prefix = f"{self.name}." if self.name else ""
        named = routed_parameters(self.module, self.site.parameters)
        return {f"{prefix}{name}": parameter for name, parameter in named.items()}


class AnySite(Protocol):
    """A site, as the guards know it."""

    state: State
    position: int
    name: str
    group: int


class Hook(AnySite, Protocol):
    """What the guards of a pass ask of a site's hook."""

    site: Site
    routes_parameters: bool
    may_silence: bool


class Attachment:
    """What a router knows of itself.

    Attributes:
        model: The model.
        state: What its hooks read.
        sites: All sites, in the order they were given; none once the router was removed.
        groups: The patterns with their specs.
    """

    def __init__(self, model: nn.Module, state: State, sites: Sequence[AttachedSite], groups: Sequence[Group]) -> None:
        self.model = model
        self.state = state
        self.sites = tuple(sites)
        self.groups = tuple(groups)
        # What a step needs of the specs, found once: comparing specs takes time where they have many labels.
        self._specs = list(dict.fromkeys(group.spec for group in self.groups))
        self._spec_of_group = [self._specs.index(group.spec) for group in self.groups]
        self.disagreeing = tuple(group.pattern for group in self.groups if group.spec.labels != self._specs[0].labels)
        for device in {parameter.device for parameter in model.parameters()}:
            for spec in self._specs:
                spec.masks.warm(device)

    # ------------------------------------------------------------------ what stands where

    @property
    def by_name(self) -> Mapping[str, tuple[AttachedSite, ...]]:
        """The sites by the name of their module; several on one module in the order they were given."""
        found: dict[str, tuple[AttachedSite, ...]] = {}
        for site in self.sites:
            found[site.name] = (*found.get(site.name, ()), site)
        return MappingProxyType(found)

    def modules_by_every_name(self) -> dict[str, nn.Module]:
        """All modules of the model, each under every name that leads to it."""
        return dict(self.model.named_modules(remove_duplicate=False))

    # ------------------------------------------------------------------ what labels mean

    def masks(self, labels: Labels) -> tuple[Mask, ...]:
        """The mask of each group for these labels.

        Raises:
            LabelError: The labels do not fit the specs.
        """
        patterns = [group.pattern for group in self.groups]
        if isinstance(labels, Mapping):
            for pattern in labels:
                if pattern not in patterns:
                    raise LabelError(
                        f"labels for {pattern!r}, no pattern of this router. {did_you_mean(pattern, patterns)}"
                    )
            missing = [pattern for pattern in patterns if pattern not in labels]
            if missing:
                raise LabelError(f"no labels for {missing[0]!r}: a mapping needs one entry per pattern.")
            return tuple([group.spec.masks.resolve(labels[group.pattern]) for group in self.groups])
        if self.disagreeing:
            raise LabelError(
                f"the sites {patterns[0]!r} and {self.disagreeing[0]!r} name different labels, so one label tensor "
                "cannot serve both: pass a mapping, router({pattern: labels, ...})."
            )
        masks = [spec.masks.resolve(labels) for spec in self._specs]
        return tuple([masks[position] for position in self._spec_of_group])

    def kept_without(self, ablated: frozenset[Hashable]) -> tuple[Tensor | None, ...]:
        """For each group, which units stay on (bool [width]) without these labels; None where all do.

        A site that names parameters owns no units: the module's other parameters teach them whoever comes.

        Raises:
            SpecError: No site knows one of the labels.
        """
        for label in ablated:
            if label is not UNTAUGHT and not any(label in group.spec.labels for group in self.groups):
                labels = {known: None for group in self.groups for known in group.spec.labels}
                raise SpecError(f"{label!r} is not a label of any site of this router. {did_you_mean(label, labels)}")
        kept: list[Tensor | None] = []
        owning = {site.group for site in self.sites if site.site.parameters is None}
        for number, group in enumerate(self.groups):
            known = group.spec.labels
            off = group.spec.exclusive(*(label for label in ablated if label is UNTAUGHT or label in known))
            keep = torch.ones(group.spec.width, dtype=torch.bool, device="cpu")
            keep[list(off)] = False
            kept.append(keep if off and number in owning else None)
        return tuple(kept)

    # ------------------------------------------------------------------ what is on

    @property
    def active(self) -> bool:
        """Whether a block is open that routes or ablates."""
        return self.state.active

    @property
    def removed(self) -> bool:
        """Whether the router was taken off the model."""
        return self.state.removed

    def check_usable(self) -> None:
        """Refuse a router that was removed, or that another thread is using.

        Raises:
            UsageError: It is such a one.
        """
        if self.state.removed:
            raise UsageError("this router was removed from its model: make a new one.")
        if not torch.compiler.is_compiling() and self.state.thread not in (None, threading.get_ident()):
            raise UsageError("this router is in use in another thread: give each thread its own model and router.")

    @contextlib.contextmanager
    def record_taught(self) -> Iterator[Taught]:
        """For the length of the block, a record of the units that the model's forward passes may teach."""
        record = Taught(group.spec.width for group in self.groups)
        self.note_block(record)
        self.state.records.append(record)
        try:
            yield record
        finally:
            self.state.records.remove(record)

    def note_block(self, record: Taught) -> None:
        """Before a step: note the labels of the block that is on, if there is one, since it may hold several steps."""
        if self.state.masks:
            record.note(self.state.masks)

    @contextlib.contextmanager
    def quiet(self) -> Iterator[None]:
        """For the length of the block nothing is warned of and nothing recorded; what was noted before is put back."""
        state = self.state
        before = state.muted, state.model_ran, state.records, state.ran, state.ever_ran
        state.muted, state.records, state.ran, state.ever_ran = True, [], set(), set(state.ever_ran)
        try:
            yield
        finally:
            state.muted, state.model_ran, state.records, state.ran, state.ever_ran = before

    @contextlib.contextmanager
    def suspended(self) -> Iterator[None]:
        """For the length of the block the router holds labels but masks nothing, and is this thread's alone.

        Raises:
            UsageError: The router is in use in another thread.
        """
        self.check_usable()
        state = self.state
        before = state.suspended, IN_FLIGHT.get(state.name, ()), state.thread
        state.thread, state.suspended = threading.get_ident(), True
        try:
            yield
        finally:
            # A block that ends while suspended sees no masks to put back, so those of a block around it are put back.
            state.suspended, state.masks, state.thread = before


class _Attached(Protocol):
    _attachment: Attachment


def attachment_of(router: _Attached) -> Attachment:
    """What this router knows of itself."""
    return router._attachment
