"""The whole life: what else happens to models between the passes, besides blocks and steps."""

from __future__ import annotations

import copy
import pickle
import types
from typing import Any

import torch
from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule
from torch import nn

from adversary.machine import Base, Lesson, some
from adversary.models import Dense, build
from adversary.passes import Lost, forward, run_elsewhere
from adversary.passes import draw_input as draw


class Wrapped(nn.Module):
    """Stands around a module, and adds nothing."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.inner(*args, **kwargs)


class Life(Base):
    """Copies, other modules, bypasses, labels that change, and compilers."""

    @precondition(lambda self: not self.open and not self.wrapped)
    @rule(how=some("both", "pickle", "model"))
    def copy(self, how: str) -> None:
        self.compiled, self.spare, self.notes = None, [], []
        if how == "model":
            self.model = copy.deepcopy(self.model)
            hooked = self.router is not None and not self.touched  # with no other module in a site's place
            self.orphan, self.router, self.sites = hooked or self.orphan, None, []
        elif how == "both":
            self.model, self.router = copy.deepcopy((self.model, self.router))
        else:
            self.model, self.router = pickle.loads(pickle.dumps((self.model, self.router)))

    @precondition(lambda self: not self.wrapped and not self.open and not self.orphan)
    @rule(which=st.integers(0, 2), how=some("module", "forward", "wrap"))
    def replace(self, which: int, how: str) -> None:
        """Another module, or another forward method, or a wrapper where one was; what is right then is checked by use."""
        block = self.model[which % len(self.model)]
        self.passes.clear()
        if how == "module":
            self.touched = True
            block.inner = copy.deepcopy(build(self.names)[which % len(self.names)].inner)
        elif how == "forward":
            block.inner.forward = types.MethodType(type(block.inner).forward, block.inner)
        elif not isinstance(block.inner, nn.MultiheadAttention):
            self.wrapped.add(which % len(self.names))
            block.inner = Wrapped(block.inner)

    @precondition(
        lambda self: (
            self.router is not None
            and not (self.open or self.wrapped or self.touched or self.compiles)
            and any(isinstance(block, Dense) for block in self.model)
        )
    )
    @rule(data=st.data(), how=some("forward", "function"), inside=st.booleans(), known=st.booleans())
    def bypass(self, data: st.DataObject, how: str, inside: bool, known: bool) -> None:
        """A pass that goes around modules: routed all the same, or it is said; `known`: after one through them."""
        if known:
            self.teach(data, Lesson(True, None, "here", False, "inside", False))
        # While an earlier graph waits for its backward, nobody can tell which of both wrote the gradients.
        self.passes, self.spare = [], []
        if not self.begin(data):
            return
        for block in self.model:
            block.around = how
        one = self.run(True, "grad", None, "here", False, around=True)
        for block in self.model:
            block.around = None
        try:
            if not inside:
                self.close_block()
            if one is not None:
                self.go_back(one, False, "here")
                if self.wrong:
                    raise Lost("units were on that are silent")
        except Lost:
            if inside:
                self.close_block()  # where it may be said
            if not any("were never called" in note or "were not called" in note for note in self.notes):
                raise
        else:
            if inside:
                self.close_block()

    @precondition(lambda self: self.orphan)
    @rule(passes=st.integers(1, 2))
    def learn_without_a_router(self, passes: int) -> None:
        """Somebody trains the copy, and takes no notice of a first warning."""
        for _ in range(passes):
            self.run(True, "grad", None, "here", False)

    @precondition(lambda self: any(one.given is not None for one in (*self.open, *self.spare)))
    @rule(data=st.data(), counted=st.booleans())
    def change_labels(self, data: st.DataObject, counted: bool) -> None:
        """In place: a block holds what its labels held as it began, or what needs them raises."""
        blocks = [one for one in (*self.open, *self.spare) if one.given is not None]
        given = data.draw(st.sampled_from(blocks), label="block").given
        for tensor in given.values() if isinstance(given, dict) else [given]:
            (tensor if counted else tensor.data).copy_(tensor.flip(0).clone())

    @precondition(lambda self: self.compiles and self.compiled is None)
    @rule(what=some("model", "model", "twin", "unrelated"), backend=some("eager", "aot_eager"))
    def compile(self, what: str, backend: str) -> None:
        if "Memory" in self.names:
            # Without a router too, aot_eager takes for the gradient a buffer as it is when the pass has written to it.
            backend = "eager"
        with self.allowed("compile"):
            if what == "model":
                self.compiled = torch.compile(self.model, backend=backend)
            elif what == "twin":
                twin = torch.compile(build(self.names), backend=backend)
                run_elsewhere("thread", lambda: forward(twin, draw(0), 0, "grad", None))
            else:
                torch.compile(lambda x: x * 2, backend=backend)(torch.ones(2))
