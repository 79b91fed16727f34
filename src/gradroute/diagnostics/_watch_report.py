"""`WatchReport`: what an optimizer step moved that it should not, and why."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from ..errors import LeakError
from . import _reports as tables

Cause: TypeAlias = Literal["gradient", "momentum", "weight decay", "buffer", "unknown"]
"""Why something moved that nobody taught."""

ADVICE: dict[Cause, str] = {
    "gradient": "A gradient reached it around its route: gradroute.audit names the path.",
    "momentum": "The optimizer's state moves it where the gradient is 0, too: gradroute.optim.Isolation holds it.",
    "weight decay": "Weight decay moves it where the gradient is 0, too: gradroute.optim.Isolation holds it, or set "
    "weight_decay=0 for it.",
    "buffer": "Running statistics take in every example: put the module in eval mode, or use a norm without them.",
    "unknown": "Neither gradient, state nor weight decay explains it: something else wrote to it.",
}


@dataclass(frozen=True)
class Move:
    """What moved of a parameter or buffer, although it belongs to units that no example of the step could teach.

    Attributes:
        target: The qualified name of the parameter or buffer.
        units: The units along the dimension that counts them; () where the whole target belongs to one.
        moved: The norm of the change.
        relative: `moved`, divided by the norm that these entries had before the step.
        causes: Why: ``"gradient"`` (one reached them around the route), ``"momentum"`` (the optimizer's state was not
            0), ``"weight decay"``, ``"buffer"`` (running statistics), or ``"unknown"``. Of several it is not known how
            much each of them contributed.
        advice: What to do about it.

    Examples:
        >>> import torch, gradroute as gr
        >>> model = torch.nn.Linear(3, 2, bias=False)
        >>> router = gr.Router(model, {"": gr.RoutingSpec.one_per_label(2)})
        >>> optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.1)
        >>> with gr.watch(model, optimizer, router) as watcher:
        ...     with router(torch.tensor([1, 1])):
        ...         model(torch.ones(2, 3)).sum().backward()
        ...     optimizer.step()
        >>> [move] = watcher.report.moves
        >>> move.target, move.units, move.causes
        ('weight', (0,), ('weight decay',))
    """

    target: str
    units: tuple[int, ...]
    moved: float
    relative: float
    causes: tuple[Cause, ...]
    advice: str


@dataclass(frozen=True)
class WatchReport(tables.Report):
    """What one optimizer step did to units that nobody taught.

    Attributes:
        step: Which step since the watch began, from 1 on.
        moves: What moved, the largest change first.
        held: The parameters and buffers with entries of such units, in which these entries did not move.
        notes: What was not looked at.

    Examples:
        >>> import torch, gradroute as gr
        >>> model = torch.nn.Linear(3, 2, bias=False)
        >>> router = gr.Router(model, {"": gr.RoutingSpec.one_per_label(2)})
        >>> optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.1)
        >>> with gr.watch(model, optimizer, router) as watcher:
        ...     with router(torch.tensor([1, 1])):
        ...         model(torch.ones(2, 3)).sum().backward()
        ...     optimizer.step()
        >>> watcher.report.clean, watcher.report.step
        (False, 1)
        >>> watcher.report.assert_clean()  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        gradroute.errors.LeakError: an optimizer step moved units that nobody taught:
          'weight' by ... (weight decay). Weight decay moves it where the gradient is 0, too: ...
    """

    step: int
    moves: tuple[Move, ...]
    held: tuple[str, ...]
    notes: tuple[str, ...] = ()

    @property
    def clean(self) -> bool:
        """Whether nothing moved that should not."""
        return not self.moves

    def assert_clean(self, tolerance: float = 0.0) -> None:
        """Raise if something moved further than the tolerance.

        Raises:
            LeakError: It did; the message names what, and why.
        """
        found = [move for move in self.moves if move.moved > tolerance]
        if found:
            lines = [f"  {m.target!r} by {m.moved:.3g} ({', '.join(m.causes)}). {m.advice}" for m in found[:8]]
            raise LeakError("an optimizer step moved units that nobody taught:\n" + "\n".join(lines))

    def to_dict(self) -> dict[str, Any]:
        """All of the report in what JSON can carry."""
        return {**tables.jsonable(self), "clean": self.clean}

    def _notes(self) -> tuple[str, ...]:
        return self.notes

    def _title(self) -> str:
        return f"Step {self.step}: {len(self.moves)} moved that nobody taught, {len(self.held)} held"

    def _tables(self) -> list[tables.Table]:
        if not self.moves:
            return []
        rows = [
            (m.target, tables.units(m.units), tables.cell(m.moved), tables.percent(m.relative), ", ".join(m.causes))
            for m in self.moves
        ]
        causes = dict.fromkeys(cause for move in self.moves for cause in move.causes)
        return [
            tables.Table("Moved", ("target", "units", "by", "relative", "why"), rows),
            tables.Table("What to do", ("why", "advice"), [(cause, ADVICE[cause]) for cause in causes]),
        ]
