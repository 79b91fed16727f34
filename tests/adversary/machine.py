"""A router's life, as hypothesis makes it up; after each backward pass the gradients are held against the oracle."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import warnings
from collections import Counter
from collections.abc import Iterator
from typing import Any, ClassVar, NamedTuple

import torch
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

import gradroute as gr
from adversary.models import NAMES, build
from adversary.passes import Crash, Expected, Lost, Pass, draw_input, forward, loss_of, run_elsewhere
from adversary.sites import LABELS, Drawn, Labels, by_pattern, labels, sites

#: What the machine should leave out, by name: blocks and rules ("compile", "reentrant", ...), to look past a known find.
WITHOUT = frozenset(os.environ.get("ADVERSARY_WITHOUT", "").split(","))


def some(*choices: Any) -> Any:
    return st.sampled_from([choice for choice in choices if choice not in WITHOUT])


CHECKPOINT = some(None, None, "reentrant", "saved")
ELSEWHERE = some("here", "here", "here", "here", "thread", "task")
MODES = some("grad", "grad", "grad", "grad", "no_grad", "inference")
ORDERS = some("inside", "inside", "after", "in the next", "in an inner")


class Lesson(NamedTuple):
    """A step of training: a block, a pass, and its backward in the block, after it, or in another block."""

    train: bool
    checkpoint: str | None
    where: str
    compiled: bool
    order: str
    ablates: bool


LESSONS = st.builds(
    Lesson, st.booleans(), CHECKPOINT, ELSEWHERE, st.booleans(), ORDERS, some(False, False, False, True)
)


@dataclasses.dataclass
class Opened:
    """A block that is open, and what it must mean while it is.

    Attributes:
        given: Its labels, which somebody may change; None where it ablates.
        held: What they held when the block began, for each pattern.
        ablated: What it ablates.
    """

    block: Any
    given: Labels | None
    held: Any
    ablated: frozenset[int] = frozenset()


class Base(RuleBasedStateMachine):
    """One model, at most one router on it at a time, blocks that are open, and passes whose backward is to come."""

    #: How many gradients were checked, over all lives; "routed": those of passes under labels.
    checked: ClassVar[Counter[str]] = Counter()
    compiles_in = 8  # one in so many lives compiles; 0: none
    models = st.lists(st.sampled_from([name for name in NAMES if name not in WITHOUT]), min_size=1, max_size=3)

    @initialize(data=st.data())
    def start(self, data: st.DataObject) -> None:
        names = data.draw(self.models, label="blocks")
        self.names, self.model = tuple(names), build(tuple(names))
        self.compiles = bool(self.compiles_in) and "compile" not in WITHOUT
        self.compiles = self.compiles and data.draw(st.integers(1, self.compiles_in)) == self.compiles_in
        self.compiled = None
        self.open: list[Opened] = []
        self.spare: list[Opened] = []  # blocks of this router that ended, and may begin again
        self.passes: list[Pass] = []
        self.seed, self.wrapped, self.orphan, self.touched = 0, set(), False, False
        self.notes: list[str] = []  # what was said of this model and its router
        self.router: gr.Router | None = None
        self.attach(data)

    # ------------------------------------------------------------------ routers and blocks

    @precondition(lambda self: self.router is None and not self.wrapped)
    @rule(data=st.data())
    def attach(self, data: st.DataObject) -> None:
        self.sites: list[Drawn] = data.draw(sites(self.names), label="sites")
        found = {s.slot.name: [o.site() for o in self.sites if o.slot.name == s.slot.name] for s in self.sites}
        with self.allowed("attach"):
            self.router = gr.Router(self.model, found)
            self.orphan, self.notes, self.touched = False, [], False

    @precondition(lambda self: self.router is not None and not self.open)
    @rule()
    def remove(self) -> None:
        self.router.remove()
        self.router, self.sites, self.spare = None, [], []
        # What checkpointing runs again after this runs without routing: who removes the router has asked for it.
        self.passes = [each for each in self.passes if each.checkpoint is None]

    @precondition(lambda self: self.router is not None and len(self.open) < 3)
    @rule(data=st.data(), kind=some("labels", "labels", "labels", "ablated", "again", "nested in itself"))
    def open_block(self, data: st.DataObject, kind: str) -> None:
        self.begin(data, kind)

    def begin(self, data: st.DataObject, kind: str = "labels") -> bool:
        """Begin a block; returns whether it began."""
        with self.allowed("open a block"):
            if kind == "ablated" and self.may_ablate:
                some_labels = data.draw(st.sets(st.integers(0, LABELS - 1), min_size=1, max_size=2), label="ablated")
                one = Opened(self.router.ablated(*some_labels), None, None, frozenset(some_labels))
            elif kind == "again" and self.spare:
                one = data.draw(st.sampled_from(self.spare), label="block")
            elif kind == "nested in itself" and self.open:
                one = data.draw(st.sampled_from(self.open), label="block")
            else:
                given = data.draw(labels(self.sites), label="labels")
                one = Opened(self.router(given), given, None)
            one.block.__enter__()
            held = None if one.given is None else by_pattern(one.given, self.sites)
            self.open.append(dataclasses.replace(one, held=held))
            return True
        return False

    @precondition(lambda self: self.open)
    @rule()
    def close_block(self) -> None:
        one = self.open.pop()
        self.spare = [*self.spare[-1:], one]
        with self.allowed("close a block"):
            one.block.__exit__(None, None, None)

    @precondition(lambda self: len(self.open) > 1)
    @rule()
    def overlap(self) -> None:
        """An outer block ends before an inner one: refused, or what is still open holds."""
        one = self.open.pop(-2)
        with self.allowed("close an outer block"):
            one.block.__exit__(None, None, None)
            return
        while self.open:
            self.close_block()

    @property
    def may_ablate(self) -> bool:
        """Where the site's tensor is its input, too, the oracle's model, without aliases, is another one."""
        return all(site.slot.own for site in self.sites)

    def in_force(self) -> tuple[Any, frozenset[int]]:
        """The labels, for each pattern, and what is ablated; of the labels those of the innermost block."""
        held = [one.held for one in self.open if one.held is not None]
        return (held[-1] if held else None), frozenset().union(*(one.ablated for one in self.open))

    # ------------------------------------------------------------------ passes

    @rule(train=st.booleans(), mode=MODES, checkpoint=CHECKPOINT, where=ELSEWHERE, compiled=st.booleans())
    def forward(self, train: bool, mode: str, checkpoint: str | None, where: str, compiled: bool) -> None:
        self.run(train, mode, checkpoint, where, compiled)

    def run(
        self, train: bool, mode: str, checkpoint: str | None, where: str, compiled: bool, *, around: bool = False
    ) -> Pass | None:
        """A forward pass; returns it where its backward may come, and it ran.

        If it goes around modules what is silent there may be on: that may be said later.
        """
        if checkpoint and "Memory" in self.names:
            return None  # a pass that runs again is another pass there
        self.seed += 1
        # A pass that is run again would be another one now, and the graph of a BatchNorm in evaluation holds the very
        # statistics that a training pass writes to: with or without routing.
        if "BatchNorm" in self.names:
            self.passes.clear()
        if self.model.training != train:
            self.passes = [each for each in self.passes if each.checkpoint is None]
        self.model.train(train)
        held, ablated = self.in_force() if self.router else (None, frozenset())
        state = {self.key(key): value.clone() for key, value in self.model.state_dict().items()}
        places = [site.place(None if held is None else held[site.slot.name], ablated) for site in self.sites]
        expected = Expected.of(self.names, state, places, train, self.seed)
        model = self.compiled if compiled and self.compiled is not None else self.model
        x = draw_input(self.seed)
        done = None
        with self.allowed("forward") as notes:
            done = run_elsewhere(where, lambda: forward(model, x, self.seed, mode, checkpoint))
        if done is None:
            return None
        if where == "thread" and self.open and self.router and not self.touched:
            raise Lost("a pass in another thread than the block's ran, under the labels of somebody else's batch")
        self.wrong = not torch.allclose(done, expected.value, rtol=1e-5, atol=1e-6)
        if self.wrong and not around:
            raise Lost(f"the forward pass is wrong by {(done - expected.value).abs().max():.2g}")
        for key, buffer in self.model.named_buffers():
            if not torch.allclose(buffer, expected.buffers[self.key(key)]):
                raise Lost(f"the buffer {key} changed as it does not without routing")
        if self.orphan and mode == "grad" and train and checkpoint != "reentrant" and not notes:
            raise Lost("a copy without its router trains unrouted, and nothing says so")
        if mode != "grad":
            return None
        # Where another module stands, and no block says that it is to be routed, there is nothing to say.
        unrouted = held is None and self.router is not None and train and not self.touched
        # In compiled code nothing sees whether a copy learns that is in evaluation mode.
        unrouted = unrouted or (self.orphan and (train or model is self.model))
        one = Pass(
            *(done, x, self.model, expected, checkpoint, held is not None and self.router is not None, unrouted),
            *(self.router, bool(notes), self.notes),
        )
        self.passes.append(one)
        return one

    @precondition(lambda self: self.passes)
    @rule(which=st.integers(0, 10), again=st.booleans(), where=ELSEWHERE)
    def backward(self, which: int, again: bool, where: str) -> None:
        self.go_back(self.passes[which % len(self.passes)], again, where)

    @precondition(lambda self: self.passes)
    @rule(where=ELSEWHERE)
    def last_backward(self, where: str) -> None:
        self.go_back(self.passes[-1], False, where)

    def go_back(self, one: Pass, again: bool, where: str) -> None:
        for parameter in (*one.model.parameters(), one.x):
            parameter.grad = None
        done = False
        with self.allowed("backward") as notes:
            run_elsewhere(where, lambda: loss_of(one.output).backward(retain_graph=again))
            done = True
        if one.said is not self.notes:
            one.said += notes
        if not (done and again):
            self.passes = [each for each in self.passes if each is not one]
        if done and not notes and not one.warned:
            one.check(self.key)
            self.checked["all"] += 1
            self.checked["routed"] += one.routed
            if one.unrouted and not one.said:
                raise Lost("a pass without labels learned unrouted, and nothing warned")

    @precondition(lambda self: self.router is not None and len(self.open) < 2)
    @rule(data=st.data(), lessons=st.lists(LESSONS, min_size=1, max_size=3))
    def learn(self, data: st.DataObject, lessons: list[Lesson]) -> None:
        """Steps of training."""
        for lesson in lessons:
            self.teach(data, lesson)

    @precondition(lambda self: self.router is not None and len(self.open) < 2)
    @rule(data=st.data(), lessons=st.lists(LESSONS, min_size=1, max_size=3))
    def learn_more(self, data: st.DataObject, lessons: list[Lesson]) -> None:
        """The same: hypothesis leaves out some rules in each life."""
        self.learn(data, lessons)

    def teach(self, data: st.DataObject, lesson: Lesson) -> None:
        if not self.begin(data):
            return
        depth = len(self.open)
        inner = lesson.ablates and self.begin(data, "ablated")
        one = self.run(lesson.train, "grad", lesson.checkpoint, lesson.where, lesson.compiled)
        if lesson.order in ("after", "in the next"):
            self._close_to(depth - 1)
        if lesson.order in ("in the next", "in an inner") and len(self.open) < 3:
            self.begin(data, "ablated" if lesson.ablates and not inner else "labels")
        if one is not None and any(one is each for each in self.passes):
            self.go_back(one, False, "here")
        self._close_to(depth - 1)

    def _close_to(self, depth: int) -> None:
        while len(self.open) > depth:
            self.close_block()

    @rule()
    def step(self) -> None:
        self.passes.clear()  # the parameters that their graphs saved are about to change
        with self.allowed("step"):
            # Many steps in a row go on with one gradient: in some models to infinity, of which no gradient can be told.
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            torch.optim.SGD(self.model.parameters(), 0.01).step()

    def teardown(self) -> None:
        for one in list(getattr(self, "passes", [])):
            self.go_back(one, False, "here")
        while getattr(self, "open", []):
            with warnings.catch_warnings(), contextlib.suppress(gr.RoutingError):
                warnings.simplefilter("ignore")
                self.open.pop().block.__exit__(None, None, None)
        if getattr(self, "compiles", False):
            torch._dynamo.reset()

    # ------------------------------------------------------------------ what is right

    def key(self, name: str) -> str:
        for i in self.wrapped:
            name = name.replace(f"{i}.inner.inner.", f"{i}.inner.", 1) if name.startswith(f"{i}.inner.inner.") else name
        return name

    @contextlib.contextmanager
    def allowed(self, what: str) -> Iterator[list[str]]:
        """Something may raise a RoutingError, or warn that it is unrouted, which is noted; nothing else."""
        notes: list[str] = []
        with warnings.catch_warnings(record=True) as given:
            warnings.simplefilter("always")
            try:
                yield notes
            except (gr.RoutingError, Lost) as error:
                if isinstance(error, Lost):
                    raise
            except RuntimeError as error:
                # In-place operations are refused by PyTorch, and some views cannot be compiled with or without routing. A
                # recomputation that was refused before is begun again by a second backward, and does not fit any more.
                known = ("inplace", "in-place", "modified in", "view size is not compatible", "different metadata than")
                if not any(word in str(error) for word in known):
                    raise Crash(f"{what}: {type(error).__name__}: {error}") from error
            except Exception as error:
                raise Crash(f"{what}: {type(error).__name__}: {error}") from error
            finally:
                notes += [str(w.message) for w in given if issubclass(w.category, gr.UnroutedWarning)]
                if notes:
                    self.notes += notes
