"""Sites whose modules a block never calls, so that nothing is routed there: others may use their weights."""

from __future__ import annotations

from typing import Any

from torch.utils.hooks import RemovableHandle

from ... import _torch_private as private
from ...errors import preview
from ...spec._deferred_mask import BatchMask
from .._attachment import Attachment
from ._learned import Learned


class Uncalled:
    """Notices, from block to block, sites that do not run: their modules are bypassed, and route nothing."""

    def __init__(self, attachment: Attachment) -> None:
        self._attachment = attachment
        self._names = [site.name for site in attachment.sites]
        self._learned = Learned(attachment, lambda position: self._warn_bypassed([position]))
        self._outer: list[tuple[set[int], dict[int, bool], bool]] = []
        self._handles: list[RemovableHandle] = []  # on the parameters of the sites that come next
        self._expected: set[int] = set()  # sites whose compiled code, which holds no mask, may have one still to come

    def close(self) -> None:
        """Look at no parameters any more."""
        self._expect_nothing()
        self._learned.close()

    def check(self) -> None:
        """Before a block begins: see `Learned`."""
        self._learned.check()

    def begin(self) -> None:
        """A block begins."""
        state = self._attachment.state
        self._expect_nothing()
        self._expected = {n for n in self._expected if not self._learned.has_mark(n)}
        self._learned.begin()
        self._outer.append((state.ran, state.ran_apart, state.model_ran))
        state.ran, state.ran_apart, state.model_ran, state.model_records = set(), {}, False, False

    def end(self, masks: tuple[BatchMask, ...], *, failed: bool) -> None:
        """A block ends, under these masks; after an error there is nothing to say."""
        state = self._attachment.state
        ran, model_ran = state.ran, state.model_ran
        apart = [n for n, never in state.ran_apart.items() if never] if any(state.ran_apart.values()) else []
        silent = [n for n in range(len(self._names)) if n not in ran] if len(ran) < len(self._names) else []
        # What Dynamo keeps of masks says nothing of a graph.
        learned = self._learned.end(() if ran <= state.ran_compiled else masks, ran, silent)
        outer_ran, state.ran_apart, outer_model_ran = self._outer.pop()
        state.ever_ran |= ran
        state.ran, state.model_ran = outer_ran | ran if outer_ran else ran, outer_model_ran or model_ran
        self._expected |= {n for n in state.ran_compiled if not self._learned.has_mark(n)}
        state.ran_compiled.clear()
        if failed or state.muted:
            return
        bypassed: list[int] = []
        # Several processes write to ``.grad`` what all of them found: an expert that is silent here may have run there.
        # But not if nothing of the model ran: then what learned is a program that was exported of it.
        found_elsewhere = private.several_processes() and (model_ran or len(ran) > 0)
        if not found_elsewhere:
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
        self._learned.watch(set(silent) - {*bypassed, *self._expected}, left_out=True)
        for n in self._expected:
            own = [p for p in self._learned.own(n) if p.requires_grad]
            self._handles += [self._learned.on_gradients(p, n, self._expected.discard) for p in own]

    def _expect_nothing(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def __reduce__(self) -> tuple[Any, ...]:
        return Uncalled, (self._attachment,)  # a copy's router is in no block

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
