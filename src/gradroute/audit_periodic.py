"""`PeriodicAudit`: an audit every so many steps of a training run, that logs what it finds and warns once."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Collection
from typing import Any, TypeAlias

from .audit import audit
from .audit_groups import few_of_each
from .audit_probes import Step
from .errors import UsageError
from .report import AuditReport, describe, name
from .router import Labels, Router

Log: TypeAlias = Callable[[dict[str, float], int], object]


class BypassWarning(UserWarning):
    """An audit during training found a label that trains what its route leaves out."""


class PeriodicAudit:
    """Audits a model while it trains: call it once a step.

    Each audit runs on a few examples only, whatever the batch size, and never so often that it would take more than
    `overhead` of the time since this was made; the first is always run in full.

    Args:
        router: The router.
        step: As for `gradroute.audit`.
        every: Audit in each step whose number is a multiple of this; the first step is number 0.
        examples: The most examples of each label in an audit.
        overhead: The most of all time that audits may take, as a part; a step that is due but would break this is
            skipped. 1.0 skips none.
        tolerance: A bypass with a larger share is warned of.
        log: Called as ``log({"audit/leak": share, ...}, step_number)`` after each audit, such as
            ``lambda values, step: fabric.log_dict(values, step)``. Or a TensorBoard `SummaryWriter`.
        allow: As for `gradroute.audit`.
        clock: Seconds; for tests.

    Attributes:
        report: The last report; None before the first audit.

    Raises:
        UsageError: A number is out of range.

    Examples:
        >>> import torch, gradroute as gr
        >>> model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.Linear(2, 1, bias=False))
        >>> router = gr.Router(model, {"0": gr.RoutingSpec.one_per_label(2)})
        >>> seen = []
        >>> check = PeriodicAudit(
        ...     router, lambda x: model(x).square().mean(), log=lambda values, step: seen.append(step), allow=["reader"]
        ... )
        >>> for number in range(3):
        ...     _ = check(torch.randn(4, 3), torch.tensor([0, 1, 0, 1]))
        >>> seen, check.report.clean
        ([0], True)
    """

    def __init__(
        self,
        router: Router,
        step: Step,
        *,
        every: int = 1000,
        examples: int = 8,
        overhead: float = 0.01,
        tolerance: float = 0.0,
        log: Log | Any = None,
        allow: Collection[str] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if every < 1 or examples < 1 or overhead <= 0:
            raise UsageError(
                f"every and examples must be at least 1, and overhead above 0; got {every}, {examples}, {overhead}."
            )
        self.report: AuditReport | None = None
        self._router = router
        self._step = step
        self._every = every
        self._examples = examples
        self._overhead = overhead
        self._tolerance = tolerance
        self._log = _as_log(log)
        self._allow = tuple(allow)
        self._clock = clock
        self._started = clock()
        self._spent = 0.0
        self._steps = 0
        self._warned: set[tuple[str, str]] = set()

    def __call__(self, batch: Any, labels: Labels) -> AuditReport | None:
        """Count a step, and audit where one is due: the report, or None.

        Call it outside of the forward pass, before or after the optimizer's step: it changes nothing.
        """
        number, self._steps = self._steps, self._steps + 1
        if number % self._every or self._spent > self._overhead * (self._clock() - self._started):
            return None
        began = self._clock()
        part, few = few_of_each(self._router, batch, labels, self._examples)
        self.report = audit(self._router, self._step, part, few, allow=self._allow)
        self._spent += self._clock() - began
        if self._log is not None:
            self._log(values_of(self.report), number)
        self._warn(number)
        return self.report

    def _warn(self, number: int) -> None:
        assert self.report is not None
        new = [
            bypass
            for bypass in self.report.bypasses
            if bypass.share > self._tolerance and (bypass.target, bypass.kind) not in self._warned
        ]
        if new:
            self._warned |= {(bypass.target, bypass.kind) for bypass in new}
            warnings.warn(f"step {number}: {describe(new)}", BypassWarning, stacklevel=3)


def values_of(report: AuditReport) -> dict[str, float]:
    """The numbers of a report that are worth a curve: the largest share of all, and of each kind and label."""
    values = {"audit/leak": max((bypass.share for bypass in report.bypasses), default=0.0)}
    for bypass in report.bypasses:
        for key in (f"audit/{bypass.kind.replace(' ', '_')}", f"audit/label_{name(bypass.label)}"):
            values[key] = max(values.get(key, 0.0), bypass.share)
    return values


def _as_log(log: Any) -> Log | None:
    if log is None or not hasattr(log, "add_scalar"):
        if log is not None and not callable(log):
            raise UsageError(f"log must be callable, or a SummaryWriter; got {type(log).__name__}.")
        return log  # type: ignore[no-any-return]

    def write(values: dict[str, float], step: int) -> None:
        for key, value in values.items():
            log.add_scalar(key, value, step)

    return write
