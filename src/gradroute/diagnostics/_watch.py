"""`watch`: which units that nobody taught an optimizer step moved all the same, by how much, and why."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from .. import _torch_private as private
from ..errors import SiteError, UsageError
from ..optim._parameter_units import Place, places_of
from ..optim._state import Arguments, after_closure
from ..router._attachment import AttachedSite, attachment_of
from ..router._router import Router
from ..unit_dims import spread
from ._watch_report import ADVICE, Cause, Move, WatchReport

__all__ = ["Move", "Watch", "WatchReport", "watch"]


def watch(model: nn.Module, optimizer: Optimizer, router: Router) -> Watch:
    """Report what each optimizer step moves of units that no example of the step could teach.

    A step's examples are those of the forward passes since the step before. What belongs to a unit are the entries of
    parameters that `gradroute.optim.Isolation` holds, and the running statistics of a BatchNorm that is the site itself
    or reads its output. With several processes, each looks at its own examples alone.

    Args:
        model: The model of the router.
        optimizer: The optimizer itself, not what a trainer wraps it in.
        router: The router.

    Returns:
        A context manager whose `report` is that of the latest step.

    Raises:
        UsageError: The model is not the router's, the router was removed from it, or the optimizer is none.

    Examples:
        >>> import torch, gradroute as gr
        >>> model = torch.nn.Linear(3, 2)
        >>> router = gr.Router(model, {"": gr.RoutingSpec.one_per_label(2)})
        >>> optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.1)
        >>> with watch(model, optimizer, router) as watcher:
        ...     with router(torch.tensor([1, 1])):
        ...         model(torch.ones(2, 3)).sum().backward()
        ...     optimizer.step()
        >>> [(move.target, move.units, move.causes) for move in watcher.report.moves if move.target == "weight"]
        [('weight', (0,), ('weight decay',))]
    """
    if router.model is not model:
        raise UsageError("watch needs the model that the router is attached to; got another.")
    if not isinstance(optimizer, Optimizer):
        raise UsageError(f"optimizer must be a torch.optim.Optimizer; got {type(optimizer).__name__}.")
    return Watch(optimizer, router)


@dataclass
class _Before:
    """A parameter as it was before the step: its values and why it might move."""

    values: Tensor
    frozen: Tensor
    causes: tuple[Cause, ...]


class Watch:
    """What `watch` returns: it looks on until it is closed, by hand or by the end of a ``with`` block.

    Raises:
        UsageError: The router was removed from its model.

    Examples:
        >>> import torch, gradroute as gr
        >>> model = torch.nn.Linear(3, 2)
        >>> router = gr.Router(model, {"": gr.RoutingSpec.one_per_label(2)})
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> watcher = gr.watch(model, optimizer, router)
        >>> with router(torch.tensor([1, 1])):
        ...     model(torch.ones(2, 3)).sum().backward()
        >>> optimizer.step()
        >>> watcher.report.clean
        True
        >>> watcher.close()
    """

    def __init__(self, optimizer: Optimizer, router: Router) -> None:
        self._router = router
        self._attachment = attachment_of(router)
        self._optimizer = optimizer
        self._names = {parameter: name for name, parameter in router.model.named_parameters()}
        self._places, self._notes = _known_places(router)
        self._recording = contextlib.ExitStack()
        self._record = self._recording.enter_context(self._attachment.record_taught())
        self._taught = self._record.units
        self._before: dict[str, _Before] | None = None
        self._moved_buffers: list[tuple[str, Move | None]] = []
        self._stepped = False  # and not yet compared
        self._steps = 0
        self._report: WatchReport | None = None
        self._statistics: dict[str, tuple[Tensor, int]] = {}  # the values before, and the group whose units they are
        self._site_outputs: dict[int, int] = {}
        self._handles: list[Any] = [
            optimizer.register_step_pre_hook(self._before_step),
            optimizer.register_step_post_hook(self._after_step),
        ]
        for attached in self._attachment.sites:
            if attached.site.on == "output":
                self._handles.append(attached.module.register_forward_hook(self._note_output(attached)))
        for name, module in self._attachment.modules_by_every_name().items():
            if private.is_batch_norm(module) and module.running_mean is not None:
                self._handles.append(module.register_forward_pre_hook(self._note_statistics(name)))

    def __enter__(self) -> Watch:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def report(self) -> WatchReport:
        """The report of the latest step.

        Raises:
            UsageError: The optimizer has not stepped yet.
        """
        self._finish()
        if self._report is None:
            raise UsageError("the optimizer has not stepped while it was watched, so there is nothing to report.")
        return self._report

    def close(self) -> None:
        """Take all hooks off; the report stays. Closing twice is fine."""
        self._finish()
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._recording.close()

    # ------------------------------------------------------------------ buffers

    def _note_output(self, attached: AttachedSite) -> Any:
        def note(module: nn.Module, args: Any, output: Any) -> None:
            if isinstance(output, Tensor):
                self._site_outputs[output.data_ptr()] = attached.group

        return note

    def _note_statistics(self, name: str) -> Any:
        own = next((site.group for site in self._attachment.sites if site.name == name), None)

        def note(module: Any, args: Any) -> None:
            group = own if own is not None else self._site_outputs.get(args[0].data_ptr()) if args else None
            if group is not None and module.num_features == len(self._taught[group]) and module.training:
                for buffer in ("running_mean", "running_var"):
                    full = f"{name}.{buffer}" if name else buffer
                    self._statistics.setdefault(full, (getattr(module, buffer).clone(), group))

        return note

    # ------------------------------------------------------------------ around a step

    def _before_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> Arguments | None:
        self._finish()
        self._before = None
        return after_closure(args, kwargs, self._look)

    @torch.no_grad()
    def _look(self) -> None:
        if self._before is not None:
            return  # a closure that is evaluated again, after the optimizer wrote
        self._attachment.note_block(self._record)
        self._before = {}
        for group in self._optimizer.param_groups:
            for parameter in group["params"]:
                places = self._places.get(parameter)
                if places is None:
                    continue
                frozen = self._frozen(parameter, places)
                if bool(frozen.any()):
                    causes = tuple(_causes(self._optimizer, group, parameter, frozen))
                    self._before[self._names[parameter]] = _Before(parameter.detach().clone(), frozen, causes)

    @torch.no_grad()
    def _after_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        self._steps += 1
        self._moved_buffers = list(self._buffer_moves())
        self._stepped = True
        self._record.clear()
        self._statistics.clear()
        self._site_outputs.clear()

    @torch.no_grad()
    def _finish(self) -> None:
        """Compare, as late as possible: others, such as an `Isolation`, may put units back after the step."""
        if not self._stepped:
            return
        self._stepped = False
        parameters = dict(self._router.model.named_parameters())
        found = [(name, _move(name, before, parameters[name])) for name, before in (self._before or {}).items()]
        found += self._moved_buffers
        moves = sorted((move for _, move in found if move is not None), key=lambda move: -move.moved)
        held = tuple(name for name, move in found if move is None)
        self._report = WatchReport(self._steps, tuple(moves), held, self._notes)

    def _frozen(self, parameter: Tensor, places: tuple[Place, ...]) -> Tensor:
        """Which entries nobody could teach, bool, of the parameter's shape: untaught at each place that uses it."""
        frozen = torch.ones_like(parameter, dtype=torch.bool)
        for place in places:
            here = torch.zeros_like(frozen)  # so it stays at a place where no site is, which teaches everything
            for dim, group in place:
                untaught = ~self._taught[group].to(parameter.device)
                # Along no dimension there is one unit, to which all of the parameter belongs.
                here |= untaught if dim is None else spread(untaught, parameter, dim)
            frozen &= here
        return frozen

    def _buffer_moves(self) -> Iterator[tuple[str, Move | None]]:
        buffers = dict(self._router.model.named_buffers())
        for name, (values, group) in self._statistics.items():
            frozen = ~self._taught[group].to(values.device)
            if bool(frozen.any()):
                yield name, _move(name, _Before(values, frozen, ("buffer",)), buffers[name])


def _move(name: str, before: _Before, now: Tensor) -> Move | None:
    change = torch.where(before.frozen, now.detach() - before.values, 0).double()
    moved = float(change.norm())
    if moved == 0:
        return None
    size = float(torch.where(before.frozen, before.values, 0).double().norm())
    causes = before.causes or ("unknown",)
    return Move(
        name,
        _units_of(before.frozen, change),
        moved,
        moved / size if size > 0 else float("inf"),
        causes,
        " ".join(ADVICE[cause] for cause in causes),
    )


def _units_of(frozen: Tensor, change: Tensor) -> tuple[int, ...]:
    """The units along the dimension that counts them, if there is one along which whole slices are frozen."""
    for dim in range(frozen.ndim):
        rows = frozen.movedim(dim, 0).flatten(1) if frozen.ndim > 1 else frozen[:, None]
        if not bool(frozen.all()) and bool((rows.all(1) | ~rows.any(1)).all()):
            moved = (change != 0).movedim(dim, 0).flatten(1).any(1) if frozen.ndim > 1 else change != 0
            return tuple(moved.nonzero().flatten().tolist())
    return ()


def _causes(optimizer: Optimizer, group: dict[str, Any], parameter: Tensor, frozen: Tensor) -> Iterator[Cause]:
    gradient = parameter.grad
    if gradient is not None:
        dense = gradient.to_dense() if gradient.is_sparse else gradient
        if bool(dense[frozen].any()):
            yield "gradient"
    state = (t for t in optimizer.state.get(parameter, {}).values() if isinstance(t, Tensor))
    if gradient is not None and any(t.shape == parameter.shape and bool(t[frozen].any()) for t in state):
        yield "momentum"
    if gradient is not None and group.get("weight_decay", 0) != 0:
        yield "weight decay"


def _known_places(router: Router) -> tuple[dict[nn.Parameter, tuple[Place, ...]], tuple[str, ...]]:
    """The places of all sites whose units have parameters, and a note on each of the others."""
    known: list[str] = []
    notes: list[str] = []
    places: dict[nn.Parameter, tuple[Place, ...]] = {}
    for name in router.sites:
        try:
            places = places_of(router, [*known, name])
        except SiteError as error:
            notes.append(str(error))
        else:
            known.append(name)
    return places, tuple(notes)
