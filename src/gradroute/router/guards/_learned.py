"""Which sites have parameters that learn in a block, by something else than what an earlier block has routed."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from operator import is_
from typing import NamedTuple
from weakref import ReferenceType, ref

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle, unserializable_hook

from ... import _torch_private as private
from ...spec._deferred_mask import BatchMask
from ...spec._masks import Applied
from .._attachment import AttachedSite, Attachment
from .._site import routed_parameters
from ._unfit_sites import refuse_spec_of_a_part


class _Earlier(NamedTuple):
    """A block of which the backward pass may be still to come, or to come again.

    Attributes:
        masks: Its masks, which live as long as what they routed.
        applied: When each was applied, for each group of sites.
        ran: The sites that ran in it.
    """

    masks: list[ReferenceType[BatchMask]]
    applied: list[Applied]
    ran: set[int]

    def routed(self, site: AttachedSite, position: int, since: list[int]) -> bool:
        """Whether a gradient was routed since then by what the site did in this block."""
        return position in self.ran and self.applied[site.group].backward != since[site.group]


class _Open(NamedTuple):
    """A block that is on, as it began.

    Attributes:
        masks: Its masks.
        earlier: The blocks before it, and in which backward pass each of their masks had been applied last.
        watched: The sites whose parameters were watched already.
        noticed: What was noticed in the block around it.
    """

    masks: tuple[BatchMask, ...]
    earlier: list[tuple[_Earlier, list[int]]]
    watched: set[int]
    noticed: set[int]


class Learned:
    """Notices, from block to block, which sites have parameters that learn.

    A gradient leaves a mark on ``.grad``, at which the end of the block looks: that costs a pass nothing, and sees
    nothing where somebody has put ``.grad`` back by then. So the parameters of sites that did not run in some block
    are watched from then on, by a hook: nothing can be learned past it.

    Args:
        attachment: What the router knows of itself.
        after_a_block: Is told of a site whose parameters learned when no block was on, and that the last one left out.
    """

    def __init__(self, attachment: Attachment, after_a_block: Callable[[int], None]) -> None:
        self._sites = attachment.sites
        self._state = attachment.state
        self._after_a_block = after_a_block
        self._note_places()
        self._there: list[nn.Parameter] = []
        self._earlier: list[_Earlier] = []
        self._open: list[_Open] = []
        self._watches: dict[int, dict[int, RemovableHandle]] = {}
        self._noticed: set[int] = set()  # sites that were watched and learned in the block that is on
        self._left_out: set[int] = set()  # sites that did not run in the last block

    def _note_places(self) -> None:
        """Note where the parameters of each site stand.

        Only that: sharding, `load_state_dict(assign=True)` and `to_empty` put others there, and `swap_tensors`
        refuses those to which there is a weak reference.
        """
        self._places: list[list[tuple[dict[str, nn.Parameter | None], str]]] = []
        for site in self._sites:
            places = []
            for name in routed_parameters(site.module, site.site.parameters):
                owner, _, key = name.rpartition(".")
                places.append((private.parameters_of(site.module.get_submodule(owner)), key))
            self._places.append(places)
        every = {(id(table), key): (table, key) for places in self._places for table, key in places}
        self._tables = [table for table, _ in every.values()]
        self._keys = [key for _, key in every.values()]
        self._kinds = list(map(type, map(dict.get, self._tables, self._keys)))

    def check(self) -> None:
        """Before a block begins: look for the parameters. Others may have been put in their place.

        Raises:
            SiteError: The others are divided, and a spec is for the part of them that is here.
        """
        now = list(map(dict.get, self._tables, self._keys))
        # What `torch.func.functional_call` puts there, for one call, is no parameter.
        if not all(map(is_, map(type, now), self._kinds)) and all(p is None or _is_parameter(p) for p in now):
            refuse_spec_of_a_part(self._sites)
            self._note_places()
            now = list(map(dict.get, self._tables, self._keys))
        self._there = [p for p in now if p is not None and _is_parameter(p)]

    def begin(self) -> None:
        """A block begins; what ran in the block around it, if there is one, is what the state has of it now."""
        if self._open:
            self._remember(self._open[-1].masks, set(self._state.ran))
        self._earlier = [block for block in self._earlier if any(mask() is not None for mask in block.masks)]
        earlier = [(block, [applied.backward for applied in block.applied]) for block in self._earlier]
        private.mark_gradients(self._there)
        self._there = []
        for position in self._watches:
            self.watch([position])  # the parameters may be others by now
        self._open.append(_Open(self._state.masks, earlier, set(self._watches), self._noticed))
        self._noticed, self._left_out = set(), set()

    def end(self, masks: tuple[BatchMask, ...], ran: set[int], left_out: Iterable[int]) -> set[int]:
        """A block ends; return those of the sites that it left out which learned in it all the same.

        Args:
            masks: Its masks, if what they routed may still be gone through backward.
            ran: The sites that ran in it.
            left_out: The sites that did not.
        """
        block, noticed = self._open.pop(), self._noticed
        self._noticed = block.noticed | noticed
        self._remember(masks, ran)
        learned = set()
        for position in left_out:
            site, own = self._sites[position], self.own(position)
            # No hook sees what FSDP2 puts on `.grad`.
            watched = position in block.watched and not any(map(private.is_distributed, own))
            if position in noticed or (
                not watched
                and any(map(_has_learned, own))
                and not any(earlier.routed(site, position, since) for earlier, since in block.earlier)
            ):
                learned.add(position)
        return learned

    def _remember(self, masks: tuple[BatchMask, ...], ran: set[int]) -> None:
        if masks and ran:
            self._earlier.append(_Earlier(list(map(ref, masks)), [mask.applied for mask in masks], ran))

    def watch(self, positions: Iterable[int], *, left_out: bool = False) -> None:
        """From now on, notice when the parameters of these sites learn; with ``left_out=True`` tell of it, too."""
        for position in positions:
            handles = self._watches.setdefault(position, {})
            for p in self.own(position):
                handle = handles.get(id(p))
                if p.requires_grad and not (handle is not None and private.has_hook(p, handle)):
                    handles[id(p)] = self.on_gradients(p, position, self._notice)
            if left_out:
                self._left_out.add(position)

    @staticmethod
    def on_gradients(parameter: nn.Parameter, position: int, function: Callable[[int], None]) -> RemovableHandle:
        """Have a function called with the position of a site, when a parameter of it learns."""

        @unserializable_hook  # type: ignore[untyped-decorator]
        def learns(_: Tensor) -> None:
            function(position)

        return parameter.register_hook(learns)  # type: ignore[no-any-return, no-untyped-call]

    def _notice(self, position: int) -> None:
        number = private.backward_number()
        # A mask on what a module reads is applied after its parameters have learned.
        private.at_the_end_of_backward(lambda: self._judge(position, number))

    def _judge(self, position: int, number: int) -> None:
        group = self._sites[position].group
        if any(position in block.ran and block.applied[group].backward == number for block in self._earlier):
            return  # an earlier block has routed what came here
        if self._open:
            self._noticed.add(position)  # whether the site runs in the block is known when that ends
        elif position in self._left_out:
            self._after_a_block(position)

    def close(self) -> None:
        """Look at no parameters any more."""
        for handles in self._watches.values():
            for handle in handles.values():
                handle.remove()
        self._watches.clear()
        self._left_out.clear()

    def own(self, position: int) -> list[nn.Parameter]:
        """The parameters of a site."""
        return [p for table, key in self._places[position] if (p := table.get(key)) is not None and _is_parameter(p)]

    def has_mark(self, position: int) -> bool:
        """Whether something was written to a gradient of a site's parameters since a block began last."""
        return any(map(private.has_learned, self.own(position)))


def _is_parameter(tensor: Tensor) -> bool:
    return isinstance(tensor, nn.Parameter)


def _has_learned(parameter: nn.Parameter) -> bool:
    if not private.has_learned(parameter):
        return False
    # What writes zeros is `zero_grad`. To look at a DTensor would wait for other processes.
    gradient = parameter.grad
    plain = type(gradient) is Tensor and gradient.layout is torch.strided and not gradient.is_meta
    return not plain or bool(gradient.any())  # type: ignore[union-attr]
