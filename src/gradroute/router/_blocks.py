"""The `with` blocks of a router: they put labels or an ablation in flight, and what was there before back."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Hashable
from types import TracebackType
from typing import Any, Generic, Protocol, TypeVar

import torch

from ..errors import UsageError, preview
from ..spec._deferred_mask import BatchMask
from ._attachment import Attachment, Labels
from ._deferred import Later
from ._in_flight import State
from .guards._in_front import InFront
from .guards._placed import Placed
from .guards._taken_off import TakenOff
from .guards._uncalled import Uncalled


class HasBlocks(Protocol):
    """What a block asks of its router."""

    _attachment: Attachment
    _placed: Placed
    _in_front: InFront
    _taken_off: TakenOff
    _uncalled: Uncalled


RouterT = TypeVar("RouterT", bound=HasBlocks)


class Block(Generic[RouterT]):
    """A ``with`` block of a router: puts labels or an ablation in flight, and what was there before back."""

    def __init__(self, router: RouterT) -> None:
        self._router = router
        self._masks: tuple[BatchMask, ...] = ()
        self._outer: list[tuple[Any, ...]] = []

    def _begin(self) -> None:
        router, state = self._router, self._router._attachment.state
        router._attachment.check_usable()
        if not torch.compiler.is_compiling():
            router._placed.check()
            router._taken_off.check()
            router._in_front.check()
            router._uncalled.check()
        self._outer.append((self._put(state), (state.labels, state.ablated), state.thread, state.reached))
        if not torch.compiler.is_compiling():
            state.thread, state.reached = threading.get_ident(), Counter()
            router._uncalled.begin()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        state, compiling = self._router._attachment.state, torch.compiler.is_compiling()
        outer, (labels, ablated), thread, reached = self._outer.pop()
        innermost = compiling or (state.labels is labels and state.ablated == ablated)
        self._put_back(state, outer if innermost else None)
        state.thread = thread if innermost else None
        if not compiling:
            state.reached = reached
            self._router._uncalled.end(self._masks, failed=kind is not None or not innermost)
        if not innermost:
            raise _overlapping()
        if kind is None and not compiling and self._router._attachment.sites:
            self._router._placed.check()  # modules may have been replaced in the block

    def _put(self, state: State) -> Any:
        """Put it in flight; return what was there before."""
        raise NotImplementedError

    def _put_back(self, state: State, outer: Any) -> None:
        """Put back what was there before; with None, nothing."""
        raise NotImplementedError


class Labeled(Block[RouterT]):
    """``with router(labels)``."""

    def __init__(self, router: RouterT, labels: Labels) -> None:
        super().__init__(router)
        self._labels = labels
        self._masks = router._attachment.masks(labels)
        self._entered = False

    def __repr__(self) -> str:
        return "<with router(labels)>"

    def __enter__(self) -> RouterT:
        self._begin()
        return self._router

    def _put(self, state: State) -> Any:
        if self._entered:  # again: what the labels hold may have changed since
            self._masks = self._router._attachment.masks(self._labels)
        self._entered = True
        for record in state.records:  # before anything is set: it may refuse the labels
            record.begin(self._masks)
        outer = state.labels, state.masks
        state.labels, state.masks = self._labels, self._masks
        if torch.compiler.is_compiling():
            state.compiled_blocks += 1
        return outer

    def _put_back(self, state: State, outer: Any) -> None:
        state.labels, state.masks = (None, ()) if outer is None else outer
        if torch.compiler.is_compiling():
            state.compiled_blocks -= 1


class Deferred(Block[RouterT]):
    """``with router.deferred()``: a new `Later` each time that it is entered."""

    def __init__(self, router: RouterT) -> None:
        super().__init__(router)
        self._entered: list[tuple[Later, tuple[BatchMask, ...]]] = []

    def __repr__(self) -> str:
        return "<with router.deferred()>"

    def __enter__(self) -> Later:
        self._begin()
        return self._entered[-1][0]

    def _put(self, state: State) -> Any:
        later = Later(self._router._attachment)
        self._entered.append((later, later.masks()))
        outer = state.labels, state.masks
        state.labels, state.masks = self._entered[-1]
        return outer

    def _put_back(self, state: State, outer: Any) -> None:
        state.labels, state.masks = (None, ()) if outer is None else outer
        _, self._masks = self._entered.pop()


class Ablated(Block[RouterT]):
    """``with router.ablated(...)``: on top of what is ablated already."""

    def __init__(self, router: RouterT, labels: tuple[Hashable, ...]) -> None:
        super().__init__(router)
        self._labels = frozenset(labels)

    def __repr__(self) -> str:
        return f"<with router.ablated({preview(sorted(self._labels, key=str))})>"

    def __enter__(self) -> RouterT:
        self._begin()
        return self._router

    def _put(self, state: State) -> Any:
        outer = state.ablated, state.kept
        ablated = state.ablated | self._labels
        state.ablated, state.kept = ablated, self._router._attachment.kept_without(ablated)
        state.ever_ablated = True
        return outer

    def _put_back(self, state: State, outer: Any) -> None:
        state.ablated, state.kept = (frozenset(), ()) if outer is None else outer


def _overlapping() -> UsageError:
    """Blocks that overlap, as those of generators and async tasks do, hold the labels of the wrong one in between."""
    return UsageError(
        "blocks of one router overlapped: this one ended while another, begun inside of it, was still open, as "
        "generators and async tasks do that take turns. What ran in between had the labels of the wrong one. End each "
        "block before another task begins one, or give each task its own model and router."
    )
