"""A router's life, as hypothesis makes it up; after each backward pass the gradients are held against the oracle."""

from __future__ import annotations

import contextlib
import copy
import os
import pickle
import types
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule
from torch import Tensor, nn

import gradroute as gr
from adversary.models import NAMES, Block, build, purely
from adversary.passes import Crash, Lost, Pass, draw_input, forward, loss_of, run_elsewhere
from adversary.sites import Drawn, labels, sites

#: What the machine should leave out, by name: blocks and rules ("compile", "reentrant", ...), to look past a known find.
WITHOUT = frozenset(os.environ.get("ADVERSARY_WITHOUT", "").split(","))
CHOICES = {
    "checkpoint": [choice for choice in (None, None, "reentrant", "saved") if choice not in WITHOUT],
    "where": [choice for choice in ("here", "here", "here", "thread", "task") if choice not in WITHOUT],
    "mode": [choice for choice in ("grad", "grad", "grad", "no_grad", "inference") if choice not in WITHOUT],
}


class Wrapped(nn.Module):
    """Stands around a module, and adds nothing."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.inner(*args, **kwargs)


class Life(RuleBasedStateMachine):
    """One model, at most one router on it at a time, blocks that are open, and passes whose backward is to come."""

    @initialize(
        names=st.lists(st.sampled_from([name for name in NAMES if name not in WITHOUT]), min_size=1, max_size=3),
        data=st.data(),
        compiles=st.sampled_from([False] * 7 + [True]),
    )
    def start(self, names: list[str], data: st.DataObject, compiles: bool) -> None:
        self.names, self.model = tuple(names), build(tuple(names))
        self.compiles, self.compiled = compiles and "compile" not in WITHOUT, None
        self.open: list[tuple[Any, Tensor]] = []
        self.passes: list[Pass] = []
        self.seed, self.wrapped, self.orphan, self.touched = 0, set(), False, False
        self.router: gr.Router | None = None
        self.attach(data)

    # ------------------------------------------------------------------ routers and blocks

    @precondition(lambda self: self.router is None and not self.wrapped)
    @rule(data=st.data())
    def attach(self, data: st.DataObject) -> None:
        self.sites: list[Drawn] = data.draw(sites(self.names), label="sites")
        found = {
            name: [s.site() for s in self.sites if s.slot.name == name] for name in {s.slot.name: 0 for s in self.sites}
        }
        with self.allowed("attach"):
            self.router = gr.Router(self.model, found)
            self.orphan, self.warned, self.touched = False, False, False

    @precondition(lambda self: self.router is not None and not self.open)
    @rule()
    def remove(self) -> None:
        self.router.remove()
        self.router, self.sites = None, []
        # What reentrant checkpointing runs again after this runs without routing: who removes the router has asked for it.
        self.passes = [each for each in self.passes if each.checkpoint != "reentrant"]

    @precondition(lambda self: self.router is not None and len(self.open) < 3)
    @rule(data=st.data())
    def open_block(self, data: st.DataObject) -> None:
        given = data.draw(labels(self.sites), label="labels")
        with self.allowed("open a block"):
            block = self.router(given)
            block.__enter__()
            self.open.append((block, given))

    @precondition(lambda self: self.open)
    @rule()
    def close_block(self) -> None:
        block, _ = self.open.pop()
        with self.allowed("close a block"):
            block.__exit__(None, None, None)

    # ------------------------------------------------------------------ passes

    @rule(
        train=st.booleans(),
        mode=st.sampled_from(CHOICES["mode"]),
        checkpoint=st.sampled_from(CHOICES["checkpoint"]),
        where=st.sampled_from(CHOICES["where"]),
        compiled=st.booleans(),
    )
    def forward(self, train: bool, mode: str, checkpoint: str | None, where: str, compiled: bool) -> None:
        if checkpoint and "Memory" in self.names:
            return  # a pass that runs again is another pass there
        if checkpoint and compiled and self.compiled is not None:
            return  # a known find: see test_finds
        self.seed += 1
        # A pass that is run again would be another one now, and the graph of a BatchNorm in evaluation holds the very
        # statistics that a training pass writes to: with or without routing.
        if "BatchNorm" in self.names:
            self.passes.clear()
        if self.model.training != train:
            self.passes = [each for each in self.passes if each.checkpoint is None]
        self.model.train(train)
        given = self.open[-1][1] if self.open and self.router else None
        state = {self._key(key): value.clone() for key, value in self.model.state_dict().items()}
        expected, buffers, value = self._expected(state, given, train)
        model = self.compiled if compiled and self.compiled is not None else self.model
        x = draw_input(self.seed)
        done = None
        with self.allowed("forward") as notes:
            done = run_elsewhere(where, lambda: forward(model, x, self.seed, mode, checkpoint))
        if done is None:
            return
        if not torch.allclose(done, value, rtol=1e-5, atol=1e-6):
            raise Lost(f"the forward pass changed by {(done - value).abs().max():.2g}")
        for key, buffer in self.model.named_buffers():
            if not torch.allclose(buffer, buffers[self._key(key)]):
                raise Lost(f"the buffer {key} changed as it does not without routing")
        if self.orphan and mode == "grad" and train and checkpoint != "reentrant" and not notes:
            raise Lost("a copy without its router trains unrouted, and nothing says so")
        if mode == "grad":
            # Where another module stands, and no block says that it is to be routed, there is nothing to say.
            unrouted = (given is None and self.router is not None and train and not self.touched) or self.orphan
            self.passes.append(
                Pass(done, x, self.model, expected, checkpoint, compiled, unrouted, self.router, bool(notes))
            )

    @precondition(lambda self: self.passes)
    @rule(which=st.integers(0, 10), again=st.booleans())
    def backward(self, which: int, again: bool) -> None:
        one = self.passes[which % len(self.passes)]
        for parameter in (*one.model.parameters(), one.x):
            parameter.grad = None
        done = False
        with self.allowed("backward") as notes:
            loss_of(one.output).backward(retain_graph=again)
            done = True
        if not (done and again):
            self.passes = [each for each in self.passes if each is not one]
        if done and not notes and not one.warned:
            one.check(self._key)
            if one.unrouted and not self.warned:
                raise Lost("a pass without labels learned unrouted, and nothing warned")

    @rule()
    def step(self) -> None:
        self.passes.clear()  # the parameters that their graphs saved are about to change
        with self.allowed("step"):
            torch.optim.SGD(self.model.parameters(), 0.01).step()

    # ------------------------------------------------------------------ what else happens to models

    @precondition(lambda self: not self.open and not self.wrapped)
    @rule(how=st.sampled_from(["both", "pickle", "model"]))
    def copy(self, how: str) -> None:
        self.compiled = None
        if how == "model":
            self.model, self.warned = copy.deepcopy(self.model), False
            hooked = self.router is not None and not self.touched  # with no other module in a site's place
            self.orphan, self.router, self.sites = hooked or self.orphan, None, []
        elif how == "both":
            self.model, self.router = copy.deepcopy((self.model, self.router))
        else:
            self.model, self.router = pickle.loads(pickle.dumps((self.model, self.router)))

    @precondition(lambda self: not self.wrapped and not self.open and not self.orphan)
    @rule(which=st.integers(0, 2), how=st.sampled_from(["module", "forward", "wrap"]))
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

    @precondition(lambda self: self.open and not self.open[-1][1].is_floating_point())
    @rule()
    def change_labels(self) -> None:
        """In place, when their passes are done; what comes next has labels of its own."""
        _, given = self.open[-1]
        given.copy_(given.flip(0).clone())
        self.close_block()

    @precondition(lambda self: self.compiles and self.compiled is None)
    @rule(what=st.sampled_from(["model", "twin", "unrelated"]), backend=st.sampled_from(["eager", "aot_eager"]))
    def compile(self, what: str, backend: str) -> None:
        with self.allowed("compile"):
            if what == "model":
                self.compiled = torch.compile(self.model, backend=backend)
            elif what == "twin":
                twin = torch.compile(build(self.names), backend=backend)
                run_elsewhere("thread", lambda: forward(twin, draw_input(0), 0, "grad", None))
            else:
                torch.compile(lambda x: x * 2, backend=backend)(torch.ones(2))

    def teardown(self) -> None:
        while getattr(self, "open", []):
            block, _ = self.open.pop()
            with warnings.catch_warnings(), contextlib.suppress(gr.RoutingError):
                warnings.simplefilter("ignore")
                block.__exit__(None, None, None)
        if getattr(self, "compiles", False):
            torch._dynamo.reset()

    # ------------------------------------------------------------------ what is right

    def _key(self, name: str) -> str:
        for i in self.wrapped:
            name = name.replace(f"{i}.inner.inner.", f"{i}.inner.", 1) if name.startswith(f"{i}.inner.inner.") else name
        return name

    def _expected(
        self, state: dict[str, Tensor], given: Tensor | None, train: bool
    ) -> tuple[dict[str, Tensor], dict[str, Tensor], Tensor]:
        places = [] if given is None else [site.place(given) for site in self.sites]
        return Pass.expected_of(self.names, state, places, train, self.seed)

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
                # In-place operations are refused by PyTorch, and some views cannot be compiled with or without routing.
                known = ("inplace", "in-place", "modified in", "view size is not compatible")
                if not any(word in str(error) for word in known):
                    raise Crash(f"{what}: {type(error).__name__}: {error}") from error
            except Exception as error:
                raise Crash(f"{what}: {type(error).__name__}: {error}") from error
            finally:
                notes += [str(w.message) for w in given if issubclass(w.category, gr.UnroutedWarning)]
                if notes:
                    self.warned = True


__all__ = ["Block", "Life", "purely"]
