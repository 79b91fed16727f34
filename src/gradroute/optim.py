"""Optimizers and routes: `Isolation` keeps an optimizer off units that no example taught; clipping for each route."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Collection, Iterable, Iterator
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary, WeakSet

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import LBFGS, Adafactor, Optimizer

from .clipping import clip_grad_norm_per_route_
from .entries import Block, FrozenBlocks, local, put, take
from .errors import UsageError
from .owners import places_of
from .router import Router

__all__ = ["Isolation", "clip_grad_norm_per_route_"]


class _Held(NamedTuple):
    """A block of a parameter and of its state, as they were before the step."""

    parameter: Tensor
    block: Block
    values: Tensor
    state: dict[str, Tensor]


class Isolation:
    """Keeps an optimizer off the units that no example of the step could teach: they stay bitwise as they were.

    A gradient of zero freezes nothing. Momentum, weight decay and the running averages of Adam go on without it: ten
    AdamW steps under a full mask move a weight by about 0.07. So before each step of the optimizer, whatever calls it,
    the entries of those units are copied, in the weights and in the optimizer's state, and put back after it.

    What belongs to a unit are the module's own parameters at a site: with ``on="output"`` the weight rows that write
    the unit and its bias; with ``on="input"`` and ``level="parameters"`` the weight columns that read it. (A site with
    ``on="input"`` and ``level="activations"`` has none.) An entry of a row that is frozen or of a column that is frozen
    is frozen. A parameter that several modules share is frozen where all of them freeze it, and so nowhere if one of
    them is not routed.

    A unit counts as taught if an example of any forward pass since the last step may teach it, on any process: labels
    decide, not gradients. A training pass without labels teaches all units.

    What units share goes on: the count of steps behind Adam's bias correction belongs to a parameter, not to a unit, so
    a unit that was frozen for a while is corrected by the parameter's count. (Where all units of a parameter are frozen
    the optimizer does not see it, and its count stands still.) State that a step creates is, for a frozen unit, what a
    step with zero gradients and without weight decay makes of it. Buffers, such as the running mean of a batch norm,
    are no business of an optimizer and not held. Optimizers that mix the entries of a matrix, such as Muon, may let a
    frozen unit's state enter the step of the others.

    Costs: two copies of the frozen part of weights and state, one to keep it and one to put it back; memory for one of
    them, from before the step until after it; and about 60 microseconds a parameter. On a 2-core CPU, of 12 layers of
    width 768 under AdamW, a training step with 512 examples takes about 4 % longer where an eighth of the units are
    frozen and 10 % where half are; the optimizer's step alone, which does little but move memory, about 1.4 and 2 times
    as long (fused: 1.6 and 3 to 4 times). On a GPU the host waits for the device once for each forward pass and each
    step. With several processes each step begins with an all-reduce of one byte a unit.

    Args:
        router: The router. Several isolations may share it, one an optimizer.
        optimizer: The optimizer itself, not what a trainer wraps it in. Only the parameters in it are held.
        sites: The names of the modules (keys of ``router.sites``) whose units are held; all by default.
        process_group: The processes whose examples count; the default group where `torch.distributed` is initialized.
            All of them must take the same steps. For processes that train apart, a group of this process alone.

    Raises:
        SiteError: No parameters are known that belong to the units of a site, or `sites` names none.
        UsageError: The optimizer holds none of these parameters, or mixes units in its state (LBFGS, Adafactor; others
            when their first step shows it).

    Note:
        Make it before the first forward pass, and take the step for a batch before the forward pass of the next. When a
        `GradScaler` skips a step, the batch's units count as taught in the next one too, which errs on the side of
        training; `discard` makes it exact. A copied optimizer has no hooks, and so no isolation.

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
    ) -> None:
        if not isinstance(optimizer, Optimizer) or not hasattr(optimizer, "_optimizer_step_pre_hooks"):
            raise UsageError(
                f"optimizer must be a torch.optim.Optimizer; got {type(optimizer).__name__}. Make the isolation with "
                "the optimizer itself, before a library wraps it."
            )
        # Frozen is what all places freeze, and each place freezes what one of its sites does: so every choice of a site
        # for each place gives a block.
        self._blocks = {
            parameter: [_along(choice) for choice in itertools.product(*places)]
            for parameter, places in places_of(router, sites).items()
            if all(places)
        }
        learning = _parameters(optimizer) & self._blocks.keys()
        if not learning:
            raise UsageError(
                "the optimizer holds no parameter that belongs to units of this router alone. Expected an optimizer of "
                "parameters of the very model that the router is attached to; those that an unrouted module shares are "
                "never frozen."
            )
        for group in optimizer.param_groups:
            if isinstance(optimizer, LBFGS):
                raise _mixes(optimizer, "its history of whole gradients")
            if isinstance(optimizer, Adafactor) and any(parameter.ndim > 1 for parameter in learning):
                raise _mixes(optimizer, "its second moments of rows and columns")
            if group.get("differentiable"):
                raise UsageError(
                    "an optimizer with differentiable=True cannot be isolated: putting back is no function."
                )
        self._router = router
        self._optimizer = optimizer
        self._process_group = process_group
        _collect(router)
        _ISOLATIONS.setdefault(router, WeakSet()).add(self)
        self._taught = [torch.zeros_like(taught) for taught in router._record_taught()]
        if any(parameter.grad is not None for parameter in learning):
            for taught in self._taught:
                taught.fill_(True)  # by whom these gradients were made is not known
        self._held: list[_Held] = []
        self._hidden: list[tuple[Tensor, Tensor]] = []
        self._after_closure = False
        # Not for Dynamo to trace: which units are held changes from step to step.
        self._handles = [
            optimizer.register_step_pre_hook(torch.compiler.disable(self._before_step)),  # type: ignore[no-untyped-call]
            optimizer.register_step_post_hook(torch.compiler.disable(self._after_step)),  # type: ignore[no-untyped-call]
        ]

    def discard(self) -> None:
        """Forget what was taught since the last step, together with gradients that were thrown away without a step.

        Examples:
            A `GradScaler` says only by its scale that it skipped a step::

                scale = scaler.get_scale()
                scaler.step(optimizer)
                scaler.update()
                if scaler.get_scale() < scale:
                    isolation.discard()
        """
        _collect(self._router)
        for taught in self._taught:
            taught.fill_(False)

    def remove(self) -> None:
        """Take the isolation's own hooks off the optimizer, and no others. Removing twice is fine."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        _ISOLATIONS[self._router].discard(self)

    def __enter__(self) -> Isolation:
        return self

    def __exit__(self, *exception: object) -> None:
        self.remove()

    # ------------------------------------------------------------------ around a step

    def _before_step(
        self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        self._held, self._hidden, self._after_closure = [], [], False
        closure = args[1] if len(args) > 1 else kwargs.get("closure")  # the first argument is the optimizer
        if closure is None:
            self._hold()
            return None

        def closure_then_hold() -> Any:
            """Only what the closure computes says which units are taught, and only then does the optimizer write."""
            if self._after_closure:
                raise UsageError(
                    f"{type(optimizer).__name__} evaluates its closure more than once a step, and writes in between: "
                    "it cannot be isolated."
                )
            loss = closure()
            self._after_closure = True
            self._hold()
            return loss

        if len(args) > 1:
            return (args[0], closure_then_hold, *args[2:]), kwargs
        return args, {**kwargs, "closure": closure_then_hold}

    @torch.no_grad()
    def _hold(self) -> None:
        _collect(self._router)
        blocks_of = FrozenBlocks(self._taught_anywhere())
        for parameter in _parameters(self._optimizer) & self._blocks.keys():
            blocks = self._blocks[parameter]
            frozen = [block for along in blocks if (block := blocks_of(parameter, along)) is not None]
            if [] in frozen:  # the whole parameter: without a gradient the optimizer leaves it alone
                if parameter.grad is not None:
                    self._hidden.append((parameter, parameter.grad))
                    parameter.grad = None
                continue
            state = dict(_state_of_units(self._optimizer, parameter)) if frozen else {}
            for block in frozen:
                before = {key: take(local(tensor), block) for key, tensor in state.items()}
                self._held.append(_Held(parameter, block, take(local(parameter), block), before))

    @torch.no_grad()
    def _after_step(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        held, hidden = self._held, self._hidden
        self._held, self._hidden = [], []
        for taught in self._taught:
            taught.fill_(False)
        for parameter, gradient in hidden:
            parameter.grad = gradient
        for parameter, block, values, _ in held:
            put(local(parameter), block, values)
        for parameter, block, values, before in held:
            state = dict(_state_of_units(optimizer, parameter))
            new = state.keys() - before.keys()
            created = _untouched_state(optimizer, parameter, values) if new else {}
            for key, tensor in state.items():
                put(local(tensor), block, created[key] if key in new else before[key])

    def _taught_anywhere(self) -> list[Tensor]:
        """What was taught since the last step, here or on another process."""
        if not (dist.is_available() and dist.is_initialized()):
            return self._taught
        device = next(iter(self._blocks)).device  # the backend may take no other
        joined = torch.cat(self._taught).to(device, torch.uint8)
        dist.all_reduce(joined, dist.ReduceOp.MAX, self._process_group)
        return list(joined.cpu().bool().split([len(taught) for taught in self._taught]))  # type: ignore[no-untyped-call]


# A router records once what it teaches, for all of its isolations, whose optimizers need not step at the same time.
_ISOLATIONS: WeakKeyDictionary[Router, WeakSet[Isolation]] = WeakKeyDictionary()


def _collect(router: Router) -> None:
    """Hand the router's record to each of its isolations, and clear it."""
    recorded = router._record_taught()
    for isolation in _ISOLATIONS.get(router, ()):
        for mine, taught in zip(isolation._taught, recorded, strict=True):
            mine.logical_or_(taught)
    for taught in recorded:
        taught.fill_(False)


def _parameters(optimizer: Optimizer) -> set[nn.Parameter]:
    return {parameter for group in optimizer.param_groups for parameter in group["params"]}


def _along(choice: Iterable[tuple[int | None, int]]) -> dict[int | None, tuple[int, ...]]:
    """For each dimension the groups of sites, one of each place, by all of which a unit must be untaught."""
    along: dict[int | None, tuple[int, ...]] = {}
    for dim, group in choice:
        along[dim] = (*along.get(dim, ()), group)
    return along


# ---------------------------------------------------------------------- the optimizer's state


def _state_of_units(optimizer: Optimizer, parameter: Tensor) -> Iterator[tuple[str, Tensor]]:
    """The tensors in a parameter's state that have an entry for each of its own; single numbers are shared.

    Raises:
        UsageError: There is state of another form, which units may share.
    """
    for key, value in optimizer.state.get(parameter, {}).items():
        if isinstance(value, Tensor):
            if value.shape == parameter.shape:
                yield key, value
            elif value.numel() > 1:
                raise _mixes(
                    optimizer, f"{key!r} of shape {tuple(value.shape)} for a parameter of {tuple(parameter.shape)}"
                )
        elif isinstance(value, list | tuple | dict) and value:
            raise _mixes(optimizer, f"{key!r}, a {type(value).__name__}")


def _mixes(optimizer: Optimizer, what: str) -> UsageError:
    return UsageError(
        f"{type(optimizer).__name__} cannot be isolated: units share its state, {what}, so that what one unit learns "
        "changes another's. Use an optimizer whose state has the shapes of the parameters, such as AdamW."
    )


def _untouched_state(optimizer: Optimizer, parameter: Tensor, values: Tensor) -> dict[str, Tensor]:
    """The state that a step makes for these values of a parameter from zero gradients, and without weight decay.

    Zeros would be right for most optimizers, but not for the step sizes of Rprop or for a copy of the weights.
    """
    group = next(group for group in optimizer.param_groups if any(p is parameter for p in group["params"]))
    probe = nn.Parameter(values.clone())
    probe.grad = torch.zeros_like(probe)
    if parameter.grad is not None and parameter.grad.is_sparse:
        probe.grad = probe.grad.to_sparse()
    known = inspect.signature(type(optimizer)).parameters
    options = {key: value for key, value in (optimizer.defaults | group).items() if key in known and key != "params"}
    if "weight_decay" in options:
        options["weight_decay"] = 0.0
    try:
        twin = type(optimizer)([probe], **options)
        twin.step()
    except Exception as error:
        raise UsageError(
            f"this step created state for units that nobody taught. What it should be, a second "
            f"{type(optimizer).__name__} with the same options was to tell, but none could be made "
            f"({type(error).__name__}: {error}). Take the optimizer's first step before the isolation is made."
        ) from error
    return dict(_state_of_units(twin, probe))
