"""What a router's hooks read, which know no router and no model: the labels of the batch in flight, what is ablated."""

from __future__ import annotations

import itertools
import threading
import warnings
from collections import Counter
from collections.abc import Hashable, Mapping
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from .. import _torch_private as private
from ..errors import UnroutedWarning
from ..spec._deferred_mask import BatchMask, DeferredMask
from ._checkpointing import FirstPasses, InFlight
from ._taught import Taught

# The masks of the block that each router is in, by the name of its state. Not an attribute of the state, because of
# Dynamo: what it reaches through a module of torch.nn, such as a hook, it takes for a part of that module, whose shapes
# never change. Every batch size would compile anew.
IN_FLIGHT: dict[str, tuple[BatchMask, ...]] = {}


class _InThread(threading.local):
    """The same for the blocks of this thread only: for compiled code, which cannot ask in which thread it runs."""

    def __init__(self) -> None:
        # A thread that autograd began goes on with what another thread's block holds.
        self.masks: dict[str, tuple[BatchMask, ...]] = IN_FLIGHT if private.in_backward() else {}


IN_THREAD = _InThread()
STATES: WeakValueDictionary[str, State] = WeakValueDictionary()
_NUMBERS = itertools.count()


class State:
    """What the hooks of one router read: the labels of the batch in flight, and what is ablated.

    It lives apart from the router so that the hooks, which a model's copies and pickles carry along, never hold the
    model. A copied state is an orphan until a router that is copied with it claims it.
    """

    def __init__(self) -> None:
        self.name = f"router {next(_NUMBERS)}"
        STATES[self.name] = self
        self.labels: object = None  # of the block that is on: `Labels`, or what takes them later
        self.ablated: frozenset[Hashable] = frozenset()
        self.kept: tuple[Tensor | None, ...] = ()  # for each group, which units are on while others are ablated
        self.thread: int | None = None
        self.ever_ablated = False
        self.orphan = False
        self.removed = False
        self.compiled_blocks = 0  # blocks of labels that are part of the code that is being compiled
        self.suspended = False  # while an audit looks at the gradients as they would be without routing
        self.first_passes = FirstPasses()
        self.records: list[Taught] = []  # of those who ask which units are taught
        # In the block that is on, or since the last one:
        self.model_ran = False
        self.model_records = False  # whether the pass of the model that ran last began where gradients are recorded
        self.ran: set[int] = set()  # the sites whose module was called, by their position
        # Of those that labels were to route, whether they ran never where gradients are recorded:
        self.ran_apart: dict[int, bool] = {}
        self.ran_compiled: set[int] = set()  # those of them that may learn by compiled code
        self.ever_ran: set[int] = set()
        self.reached: Counter[int] = Counter()  # how often the stand-in for the forward of a site ran in passes on
        self.muted = False
        self.warned: set[Hashable] = set()  # of what there was a warning

    @property
    def masks(self) -> tuple[BatchMask, ...]:
        """The masks of the batch in flight, one for each group of sites; none outside of a block."""
        if self.suspended:
            return ()
        return (IN_THREAD.masks if torch.compiler.is_compiling() else IN_FLIGHT).get(self.name, ())

    @masks.setter
    def masks(self, masks: tuple[BatchMask, ...]) -> None:
        deferred = len(masks) > 0 and isinstance(masks[0], DeferredMask)  # which the guards keep from compiled code
        # The thread's own first: in a thread that autograd began they are one dict.
        for in_flight, held in ((IN_THREAD.masks, () if deferred else masks), (IN_FLIGHT, masks)):
            if held:
                in_flight[self.name] = held
            else:
                in_flight.pop(self.name, None)

    @property
    def is_deferred(self) -> bool:
        """Whether the block that is on is one whose labels come late."""
        masks = IN_FLIGHT.get(self.name, ())
        return len(masks) > 0 and isinstance(masks[0], DeferredMask)

    @property
    def active(self) -> bool:
        """Whether a hook has anything to edit."""
        return bool(self.masks) or bool(self.ablated)

    def in_flight(self) -> InFlight:
        """All of it, to be held against what a recomputation finds."""
        labels: tuple[object, ...] = ()
        if self.labels is not None:
            labels = tuple(self.labels.values()) if isinstance(self.labels, Mapping) else (self.labels,)
        versions = tuple([private.version(each) if isinstance(each, Tensor) else 0 for each in labels])
        return InFlight(labels, versions, self.ablated, self.masks)

    def has_warned(self, about: Hashable) -> bool:
        """Whether there is no more to be said of something: it was, or nothing is."""
        return self.muted or about in self.warned

    def warn(self, about: Hashable, message: str, *, stacklevel: int) -> None:
        """Warn of something once."""
        if not self.has_warned(about):
            self.warned.add(about)
            warnings.warn(message, UnroutedWarning, stacklevel=stacklevel + 1)

    def warn_unrouted(self, site: str, *, stacklevel: int = 1) -> None:
        """Warn once that a site ran a training pass without labels."""
        self.warn(
            "no labels",
            f"site {site!r} ran a training forward pass with no labels set: its gradients are not routed. Put the "
            "forward pass inside `with router(labels):`, or silence gradroute.UnroutedWarning if you mean it.",
            stacklevel=stacklevel + 1,
        )

    def __deepcopy__(self, memo: dict[int, Any]) -> State:
        return _orphan(self.removed)

    def __reduce__(self) -> tuple[Any, ...]:
        return (_orphan, (self.removed,))


def _orphan(removed: bool) -> State:
    state = State()
    state.orphan = True
    state.removed = removed
    return state
