"""Sites whose modules a block never calls, so that nothing is routed there: others may use their weights."""

from __future__ import annotations

from collections.abc import Callable
from operator import is_
from typing import Any
from weakref import ReferenceType, ref

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle, unserializable_hook

from ... import _torch_private as private
from ...errors import preview
from ...spec._deferred_mask import BatchMask
from .._attachment import Attachment
from .._site import routed_parameters
from ._unfit_sites import refuse_spec_of_a_part


class Uncalled:
    """Notices, from block to block, sites that do not run: their modules are bypassed, and route nothing."""

    def __init__(self, attachment: Attachment) -> None:
        self._attachment = attachment
        self._names = [site.name for site in attachment.sites]
        self._note_parameters()
        self._there: list[nn.Parameter] = []
        self._outer: list[tuple[set[int], dict[int, bool], bool, bool]] = []
        self._handles: list[RemovableHandle] = []  # on the parameters of sites that were silent in the last block
        # The masks of blocks whose backward pass may be still to come:
        self._earlier: list[ReferenceType[BatchMask]] = []
        self._expected: set[int] = set()  # sites whose compiled code, which holds no mask, may have one still to come

    def _note_parameters(self) -> None:
        """Note the parameters of each site and where they stand, to notice when others stand there."""
        self._parameters: list[list[ReferenceType[nn.Parameter]]] = []
        places: dict[tuple[nn.Module, str], ReferenceType[nn.Parameter]] = {}
        for site in self._attachment.sites:
            own = routed_parameters(site.module, site.site.parameters)
            # Weak: sharding, `load_state_dict(assign=True)` and `to_empty` put others in their place.
            self._parameters.append([ref(p) for p in own.values()])
            for name, parameter in own.items():
                owner, _, key = name.rpartition(".")
                places[site.module.get_submodule(owner), key] = ref(parameter)
        self._tables = [private.parameters_of(module) for module, _ in places]
        self._keys = [key for _, key in places]
        self._noted = list(places.values())

    def close(self) -> None:
        """Look at no parameters any more."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def check(self) -> None:
        """Before a block begins: look for the parameters. Others may have been put in their place.

        Raises:
            SiteError: The others are divided, and a spec is for the part of them that is here.
        """
        known = [one() for one in self._noted]
        now = list(map(dict.get, self._tables, self._keys))
        # What `torch.func.functional_call` puts there, for one call, is no parameter.
        if not all(map(is_, known, now)) and all(p is None or isinstance(p, nn.Parameter) for p in now):
            refuse_spec_of_a_part(self._attachment.sites)
            self._note_parameters()
            known = [one() for one in self._noted]
        self._there = [p for p in known if p is not None]

    def begin(self) -> None:
        """A block begins."""
        state = self._attachment.state
        self.close()
        self._expected = {n for n in self._expected if not self._has_learned(n)}
        private.mark_gradients(self._there)
        self._there = []
        self._outer.append((state.ran, state.ran_apart, state.model_ran, self._waiting()))
        state.ran, state.ran_apart, state.model_ran, state.model_records = set(), {}, False, False

    def end(self, masks: tuple[BatchMask, ...], *, failed: bool) -> None:
        """A block ends, under these masks; after an error there is nothing to say."""
        state = self._attachment.state
        ran, model_ran = state.ran, state.model_ran
        apart = [n for n, never in state.ran_apart.items() if never] if any(state.ran_apart.values()) else []
        if not ran <= state.ran_compiled:  # what Dynamo keeps of masks says nothing of a graph
            self._earlier += [ref(mask) for mask in masks]
        outer_ran, state.ran_apart, outer_model_ran, waiting = self._outer.pop()
        state.ever_ran |= ran
        state.ran, state.model_ran = outer_ran | ran if outer_ran else ran, outer_model_ran or model_ran
        self._expected |= {n for n in state.ran_compiled if not self._has_learned(n)}
        state.ran_compiled.clear()
        if failed or state.muted:
            return
        silent = [n for n in range(len(self._parameters)) if n not in ran] if len(ran) < len(self._parameters) else []
        bypassed: list[int] = []
        # Several processes write to ``.grad`` what all of them found: an expert that is silent here may have run there.
        # But not if nothing of the model ran: then what learned is a program that was exported of it.
        found_elsewhere = private.several_processes() and (model_ran or len(ran) > 0)
        if not waiting and not found_elsewhere:
            learned = {n for n in silent if self._has_learned(n)}
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
        for n in silent:
            if not waiting and n not in bypassed and n not in self._expected:
                self._watch(n, self._warn_bypassed)
        for n in self._expected:
            self._watch(n, self._expected.difference_update)

    def _watch(self, position: int, what_then: Callable[[list[int]], None]) -> None:
        """Until the next block begins, notice when the site's parameters learn: backward may come after its block."""

        @unserializable_hook  # type: ignore[untyped-decorator]
        def learns(_: Tensor) -> None:
            what_then([position])

        own = [p for p in self._own(position) if p.requires_grad]
        self._handles += [p.register_hook(learns) for p in own]  # type: ignore[no-untyped-call]

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

    def _own(self, position: int) -> list[nn.Parameter]:
        return [p for one in self._parameters[position] if (p := one()) is not None]

    def _has_learned(self, position: int) -> bool:
        """Whether a parameter of the site got a gradient since a block began last."""
        return any(map(private.has_learned, self._own(position)))

    def _waiting(self) -> bool:
        """Whether a graph that was routed in an earlier block is there, and was not yet gone through backward."""
        self._earlier = [held for held in self._earlier if (mask := held()) is not None and not mask.seen_in_backward]
        return bool(self._earlier)
