"""Optimizers and routes: `Isolation` keeps an optimizer off units that no example taught; clipping for each route."""

from __future__ import annotations

import contextlib
import itertools
import weakref
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple, NoReturn

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer

from .. import _torch_private as private
from ..errors import UsageError
from ..router._attachment import attachment_of
from ..router._guards import refuse_cuda_graph
from ..router._router import Router
from ._clipping import clip_grad_norm_per_route_
from ._open_views import OpenPart, open_part, step_open
from ._own_steps import OwnSteps
from ._parameter_units import places_of
from ._slices import Block, FrozenBlocks, local, put, take
from ._state import Arguments, after_closure, refuse_mixing, refuse_own_counts, state_of_units, untouched_state

__all__ = ["Isolation", "clip_grad_norm_per_route_"]


_ISOLATIONS: weakref.WeakKeyDictionary[Optimizer, weakref.WeakSet[Isolation]] = weakref.WeakKeyDictionary()


class _Held(NamedTuple):
    """A block of a parameter and of its state, as they were before the step."""

    parameter: Tensor
    block: Block
    values: Tensor
    state: dict[str, Tensor]


@dataclass
class _Step:
    """What one step of the optimizer holds.

    Attributes:
        held: Blocks to put back.
        hidden: Parameters that the optimizer shall not see, with their gradients.
        looked: Whether it is known what the step's examples taught.
    """

    held: list[_Held] = field(default_factory=list)
    hidden: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    looked: bool = False


class Isolation:
    """Freezes, in each step of an optimizer, the units that no example since the last step may teach.

    Their weights and their part of the optimizer's state stay bitwise as they were; the other units learn as ever.

    A gradient of zero would not freeze them: momentum, weight decay and the running averages of Adam go on without it.
    Ten AdamW steps under a full mask move a weight by about 0.07. So before each step of the optimizer, whatever calls
    it, the entries of those units are copied, and after it they are put back. Where they are whole rows in a few
    pieces, and the optimizer is one of torch's that step each entry by itself, it is shown views of the other rows.

    **What belongs to a unit** are the module's own parameters at a site. With ``on="output"`` these are the weight rows
    that write the unit and its bias; with ``on="input"`` and ``level="parameters"`` the weight columns that read it. (A
    site with ``on="input"`` and ``level="activations"`` has none.) An element-wise module without parameters, such as a
    ReLU or a dropout, has the units of the layer before it in the same `nn.Sequential`. An entry is frozen if its row
    is, or its column. A parameter that several modules share is frozen where all of them freeze it; so it never is if
    one of them is not routed.

    **A unit counts as taught** if an example of any forward pass since the last step may teach it, on any process.
    Labels decide, not gradients: a unit that is ablated in the pass counts too, and so does a pass without a backward
    one. A pass without labels that computes gradients teaches all units, in evaluation mode too: evaluate under
    `torch.no_grad`. A pass in a block of ``router.deferred()`` counts when its backward pass uses the labels.

    **What is not frozen**: the count of steps behind Adam's bias correction belongs to a parameter, not to a unit, so
    it goes on for a unit that was frozen for a while, whose next steps are then several times as long as those of a
    new optimizer. With ``own_steps=True`` each unit counts its own. (Where all units of a parameter are frozen the
    optimizer does not see it, and its count stands still.) Buffers, such as the running mean of a batch norm, are no
    business of an optimizer. Optimizers that mix the entries of a matrix, such as Muon, may let a frozen unit's state
    enter the step of the others. State that a step creates is, for a frozen unit, what a step with zero gradients and
    without weight decay makes of it.

    **With own_steps=True** the units that are open in a step are stepped as tensors of their own, each with state and
    counts of its own, as under an optimizer of its own: equal to that to rounding. Where one entry's step depends on
    its whole tensor, as in Adafactor and Muon, the units to which each label gives the same weight are one tensor. The
    counts are in the optimizer's state and its `state_dict`, for each unit; such a checkpoint needs an isolation that
    counts. (Without any, Adam and others that need one number raise. But torch does not look at the counts in a fused
    optimizer on a GPU, and some need none.) A hook of your own that changes gradients before a step must be registered
    before the isolation.

    Costs: where views are stepped, Python's time for them; the step itself computes less than one of the whole.
    Elsewhere (columns, many pieces, a first step that makes state, a closure, hooks registered after this one's)
    two copies of the frozen part of weights and state, and memory for one of them, from before the step until after it.
    "What it costs" has the measurements. On a GPU the host waits for the device once for each forward pass and each
    step. With several processes each step begins with an all-reduce of one byte a unit.

    Args:
        router: The router. Several isolations may share it, one an optimizer.
        optimizer: The optimizer itself, not what a trainer wraps it in. Only the parameters in it are held.
        sites: The names of the modules (keys of ``router.sites``) whose units are held; all by default.
        process_group: The processes whose examples count; the default group where `torch.distributed` is initialized.
            All of them must take the same steps. For processes that train apart, a group of this process alone.
        own_steps: Whether each unit counts its own steps.

    Raises:
        SiteError: No parameters are known that belong to the units of a site, or `sites` names none.
        UsageError: The optimizer holds none of these parameters, or mixes units in its state (LBFGS, Adafactor; others
            when their first step shows it, such as those whose 8-bit state shares scales). With `own_steps`: it counts
            in its groups or in itself, as Prodigy does, or keeps state of which it is not known what belongs to a unit;
            a parameter is distributed; Adafactor has taken steps; another isolation of the same optimizer holds the
            same parameters. In a step: the router was removed, or a CUDA graph is being captured.

    Note:
        Make it before the first forward pass, and take the step for a batch before the forward pass of the next. When a
        `GradScaler` skips a step, the batch's units count as taught in the next one too, which errs on the side of
        training; `discard` makes it exact. A copied optimizer has no hooks, and so no isolation. Where a step raises on
        its way, nothing is put back: what it wrote until then stays.

    Examples:
        >>> import torch, gradroute as gr
        >>> model = torch.nn.Linear(3, 2)
        >>> router = gr.Router(model, {"": gr.RoutingSpec.one_per_label(2)})
        >>> optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.1)
        >>> isolation = Isolation(router, optimizer)
        >>> before = model.weight.detach().clone()
        >>> with router(torch.tensor([1, 1])):
        ...     model(torch.ones(2, 3)).sum().backward()
        >>> optimizer.step()
        >>> (model.weight == before).all(1)  # no example of label 0
        tensor([ True, False])
        >>> isolation.remove()

    References:
        Localized updates: Cloud et al., "Gradient Routing", 2024 (arXiv:2410.04332). Decoupled weight decay, which
        moves a weight without a gradient: Loshchilov and Hutter, 2019 (arXiv:1711.05101).
    """

    def __init__(
        self,
        router: Router,
        optimizer: Optimizer,
        *,
        sites: Collection[str] | None = None,
        process_group: dist.ProcessGroup | None = None,
        own_steps: bool = False,
    ) -> None:
        if not isinstance(optimizer, Optimizer) or not private.lets_hooks_see_steps(optimizer):
            raise UsageError(
                f"optimizer must be a torch.optim.Optimizer; got {type(optimizer).__name__}. Make the isolation with "
                "the optimizer itself, before a library wraps it."
            )
        # An entry is frozen if every place that uses its parameter freezes it, and a place does if one of its sites
        # does. So each way to choose one site of every place gives a block of entries.
        self._blocks = {
            parameter: [_along(choice) for choice in itertools.product(*places)]
            for parameter, places in places_of(router, sites).items()
            if all(places)
        }
        self._owned = [
            (module, name, parameter)
            for module in router.model.modules()
            for name, parameter in private.own_tensors(module).items()
            if parameter in self._blocks
        ]
        learning = _parameters(optimizer).keys() & self._blocks.keys()
        if not learning:
            raise UsageError(
                "the optimizer holds no parameter that belongs to units of this router alone, so that nothing could "
                "be frozen. Make it of the parameters of the very model that the router is attached to. (A parameter "
                "that an unrouted module shares is never frozen.)"
            )
        if not own_steps:
            refuse_mixing(optimizer, learning)
        if any(getattr(module, "max_norm", None) is not None for module, _, _ in self._owned):
            raise UsageError(
                "an embedding with max_norm scales its rows in each forward pass, frozen units too, so it cannot be "
                "isolated: use max_norm=None."
            )
        if any(group.get("differentiable") for group in optimizer.param_groups):
            raise UsageError(
                "an optimizer with differentiable=True cannot be isolated: no gradient could go through a step whose "
                "result is overwritten. Use differentiable=False."
            )
        self._attachment = attachment_of(router)
        self._optimizer = optimizer
        self._refuse_another(own_steps)
        self._own_steps: OwnSteps | None = None
        if own_steps:
            tables = [group.spec.masks.rows for group in self._attachment.groups]
            self._own_steps = OwnSteps(optimizer, self._blocks, tables, learning)
        self._process_group = process_group
        recording = contextlib.ExitStack()
        self._record = recording.enter_context(self._attachment.record_taught())
        self._end_of_record = weakref.finalize(self, recording.close)
        if any(parameter.grad is not None for parameter in learning):
            self._record.note_everything()  # by whom these gradients were made is not known
        # A step that calls that of its base class is two, one in the other; each puts back what was before it.
        self._steps: list[_Step] = []
        # Not for Dynamo to trace: which units are held changes from step to step.
        self._handles = [
            optimizer.register_step_pre_hook(torch.compiler.disable(self._before_step)),  # type: ignore[no-untyped-call]
            optimizer.register_step_post_hook(torch.compiler.disable(self._after_step)),  # type: ignore[no-untyped-call]
        ]

    def discard(self) -> None:
        """Forget what was taught since the last step, together with gradients that were thrown away without a step.

        Examples:
            A `GradScaler` says only by its scale that it skipped a step:

            >>> import torch, gradroute as gr
            >>> model = torch.nn.Linear(2, 2)
            >>> router = gr.Router(model, {"": gr.RoutingSpec.one_per_label(2)})
            >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            >>> isolation, scaler = Isolation(router, optimizer), torch.amp.GradScaler("cpu")
            >>> with router(torch.tensor([1])):
            ...     loss = model(torch.full((1, 2), torch.inf)).sum()
            >>> scaler.scale(loss).backward()
            >>> scale = scaler.get_scale()
            >>> _ = scaler.step(optimizer)
            >>> scaler.update()
            >>> if scaler.get_scale() < scale:
            ...     print("skipped")
            ...     isolation.discard()
            skipped
        """
        self._record.clear()

    def remove(self) -> None:
        """Take the isolation's own hooks off the optimizer, and no others. Removing twice is fine.

        After ``own_steps=True`` each parameter has one count again, that of the unit that took the most steps; the
        state of Adafactor for matrices is dropped.
        """
        if self._handles and self._own_steps is not None:
            self._own_steps.join()
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._end_of_record()
        _ISOLATIONS.get(self._optimizer, weakref.WeakSet()).discard(self)

    def __reduce__(self) -> NoReturn:
        raise UsageError(
            "an isolation can be neither copied nor pickled: make one for the copied router and optimizer."
        )

    def __enter__(self) -> Isolation:
        return self

    def __exit__(self, *exception: object) -> None:
        self.remove()

    # ------------------------------------------------------------------ around a step

    def _before_step(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Arguments | None:
        refuse_cuda_graph("a step of an isolated optimizer")
        if self._attachment.removed:
            raise UsageError(
                "the router of this isolation was removed from its model, so nothing says any more which units are "
                "taught: remove the isolation too, isolation.remove()."
            )
        step = _Step()
        self._steps.append(step)
        return after_closure(args, kwargs, lambda: self._hold(step))

    @torch.no_grad()
    def _hold(self, step: _Step) -> None:
        if not self._handles:
            return  # removed by the closure
        if step.looked:
            raise UsageError(
                f"{type(self._optimizer).__name__} evaluates its closure more than once a step, and writes in between: "
                "it cannot be isolated."
            )
        step.looked = True
        self._check_in_place()
        self._attachment.note_block(self._record)
        taught = self._taught_anywhere()
        with_gradient = {p: p.grad for p in _parameters(self._optimizer) if p in self._blocks and p.grad is not None}
        makes_state = self._only_makes_state(with_gradient)
        if self._own_steps is not None:
            everything = [torch.ones_like(each) for each in taught]
            self._own_steps.step(with_gradient, everything if makes_state else taught)
            step.hidden += with_gradient.items()
        else:
            self._take(step, with_gradient, taught, hide=not makes_state)
        for hidden, _ in step.hidden:  # only now: nothing raises any more, and no gradient is lost
            hidden.grad = None

    def _only_makes_state(self, gradients: dict[nn.Parameter, Tensor]) -> bool:
        """Whether this is a step of zero gradients at a rate of 0, from no state.

        Of distributed checkpoints torch takes one to have state that can be loaded into. Of parameters that were hidden
        from it, what was saved would not be loaded, without a word.
        """
        if self._optimizer.state or any(group.get("lr", 1) != 0 for group in self._optimizer.param_groups):
            return False
        return not any(gradient.is_sparse or bool(local(gradient).any()) for gradient in gradients.values())

    def _take(self, step: _Step, parameters: dict[nn.Parameter, Tensor], taught: list[Tensor], *, hide: bool) -> None:
        blocks_of = FrozenBlocks(taught)
        by_views = hide and private.is_last_before_steps(self._optimizer, self._handles[0])
        parts: list[OpenPart] = []
        for parameter, gradient in parameters.items():  # of no others: the optimizer leaves them alone
            blocks = self._blocks[parameter]
            frozen = [block for along in blocks if (block := blocks_of(parameter, along)) is not None]
            if hide and [] in frozen:  # the whole parameter: so it shall be left alone
                step.hidden.append((parameter, gradient))
                continue
            refuse_own_counts(self._optimizer, parameter)
            state = state_of_units(self._optimizer, parameter) if frozen else {}
            rows = [blocks_of.closed_rows(along) for along in blocks] if frozen and by_views else [None]
            known = [each for each in rows if each is not None]
            closed = [run for each in known for run in each]
            if len(known) == len(rows) and (part := open_part(self._optimizer, parameter, gradient, closed)):
                parts.append(part)
                continue
            for block in frozen:
                before = {key: take(local(tensor), block) for key, tensor in state.items()}
                step.held.append(_Held(parameter, block, take(local(parameter), block), before))
        if parts:  # last: nothing is refused any more
            step_open(self._optimizer, parts)
            step.hidden += [(part.parameter, part.gradient) for part in parts]

    @torch.no_grad()
    def _after_step(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not self._steps:
            return  # the isolation was made while this step was on
        step = self._steps.pop()
        for parameter, gradient in step.hidden:
            parameter.grad = gradient
        self._record.clear()
        for parameter, block, values, _ in step.held:
            put(local(parameter), block, values)
        for parameter, block, values, before in step.held:
            state = state_of_units(optimizer, parameter)
            new = state.keys() - before.keys()
            created = untouched_state(optimizer, parameter, values) if new else {}
            for key, tensor in state.items():
                put(local(tensor), block, created[key] if key in new else before[key])

    def _refuse_another(self, own_steps: bool) -> None:
        """Of two isolations that step one parameter, the second would not see it."""
        others = _ISOLATIONS.setdefault(self._optimizer, weakref.WeakSet())
        for other in others:
            if (own_steps or other._own_steps is not None) and self._blocks.keys() & other._blocks.keys():
                raise UsageError(
                    "another isolation of this optimizer holds units of the same parameters, and one of the two has "
                    "own_steps=True, which steps them by itself: put all sites on one router, or use own_steps=False "
                    "for both."
                )
        others.add(self)

    def _check_in_place(self) -> None:
        """Refuse a step of parameters that now are others, which nothing would hold."""
        for module, name, parameter in self._owned:
            if private.own_tensors(module).get(name) is not parameter:
                raise UsageError(
                    f"the {name} of this {type(module).__name__} is no longer the parameter that it was when the "
                    "isolation was made: it was replaced, or parametrized. Remove the isolation, and make a new one "
                    "with an optimizer of the new parameters."
                )

    def _taught_anywhere(self) -> list[Tensor]:
        """What was taught since the last step, here or on another process."""
        if not (dist.is_available() and dist.is_initialized()):
            return self._record.units
        device = next(iter(self._blocks)).device  # the backend may take no other
        joined = torch.cat(self._record.units).to(device, torch.uint8)
        dist.all_reduce(joined, dist.ReduceOp.MAX, self._process_group)
        return list(joined.cpu().bool().split([len(taught) for taught in self._record.units]))  # type: ignore[no-untyped-call]


def _parameters(optimizer: Optimizer) -> dict[nn.Parameter, None]:
    """All of them, in their order."""
    return dict.fromkeys(parameter for group in optimizer.param_groups for parameter in group["params"])


def _along(choice: Iterable[tuple[int | None, int]]) -> dict[int | None, tuple[int, ...]]:
    """For each dimension, the chosen sites' groups. An entry is in the block if none of them was taught its unit."""
    along: dict[int | None, tuple[int, ...]] = {}
    for dim, group in choice:
        along[dim] = (*along.get(dim, ()), group)
    return along
