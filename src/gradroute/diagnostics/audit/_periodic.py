"""`PeriodicAudit`: an audit every so many steps of a training run, that logs what it finds and warns once.

`lightning_callback` and `transformers_callback` make it a callback of theirs.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Collection, Hashable, Sequence
from typing import Any, TypeAlias, get_args

from ...errors import UsageError
from ...router._attachment import Labels, attachment_of
from ...router._router import Router
from ...spec._masks import UNLABELED
from .._reports import label_name
from ..harness._batches import few_of_each
from ..harness._joined_routers import joined, joined_labels
from ..harness._runs import LossStep
from ._audit import audit_knowing
from ._graph_paths import Kind
from ._ownership import Known
from ._report import AuditReport, describe

__all__ = ["BypassWarning", "PeriodicAudit", "lightning_callback", "transformers_callback"]

Log: TypeAlias = Callable[[dict[str, float], int], object]
"""Logs the metrics of a step: their values by name, and the number of the step."""


class BypassWarning(UserWarning):
    """An audit during training found a label that trains what its route leaves out."""


class PeriodicAudit:
    """Audits a model while it trains: call it once a step.

    Each audit runs on a few examples only, whatever the batch size. The first one finds out what belongs to which
    units, which takes about as long as `gradroute.audit`; later ones need not. They have a time budget: one that is due
    while those after the first have taken more than `overhead` of all time since then is skipped, so that with a small
    `every` audits come more rarely than that.

    Args:
        router: The router, or several, as for `gradroute.audit`.
        step: As for `gradroute.audit`.
        every: Audit in each step whose number is a multiple of this; the first step is number 0.
        examples: The most examples of each label in an audit.
        overhead: The most of all time that audits after the first may take, as a part, before the next is skipped; 1.0
            skips none.
        tolerance: A bypass with a larger share is warned of.
        log: Called as ``log(values, step_number)`` after each audit, such as
            ``lambda values, step: fabric.log_dict(values, step)``. Or a TensorBoard `SummaryWriter`. The keys are the
            same at every audit; see `values`.
        allow: As for `gradroute.audit`.
        clock: Seconds; for tests.

    Attributes:
        report: The last report; None before the first audit.
        values: The largest shares in it, 0.0 where there is no bypass: ``"audit/leak"`` of all, ``"audit/reader"``
            and so on of each kind, ``"audit/label_cats"`` and so on of each label of the router's specs and of
            unlabeled data. Of examples with several labels a bypass counts for each of them. Beyond 100 labels
            there are no keys for them.

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
        router: Router | Sequence[Router],
        step: LossStep,
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
        self.values: dict[str, float] = {}
        self._router = joined(router)
        self._step = step
        self._every = every
        self._examples = examples
        self._overhead = overhead
        self._tolerance = tolerance
        self._log = _as_log(log)
        self._allow = tuple(allow)
        self._clock = clock
        specs = (group.spec for group in attachment_of(self._router).groups)
        self._labels = [*dict.fromkeys(label for spec in specs for label in spec.labels), UNLABELED]
        self._known = Known()
        self._started = 0.0
        self._spent = 0.0
        self._steps = 0
        self._warned: set[tuple[str, str]] = set()

    def __call__(self, batch: Any, labels: Labels | Sequence[Labels]) -> AuditReport | None:
        """Count a step, and audit where one is due: the report, or None.

        Call it outside of the forward pass, before or after the optimizer's step: it changes nothing.

        Raises:
            LabelError: An audit is due, and the labels do not fit the router's specs.
            UsageError: An audit is due, and cannot be made: see `gradroute.audit`.
        """
        number, self._steps = self._steps, self._steps + 1
        began = self._clock()
        is_first = self.report is None
        if number % self._every or (not is_first and self._spent > self._overhead * (began - self._started)):
            return None
        part, few = few_of_each(self._router, batch, joined_labels(self._router, labels), self._examples)
        self.report = audit_knowing(self._known, self._router, self._step, part, few, allow=self._allow)
        if is_first:
            self._started = self._clock()
        else:
            self._spent += self._clock() - began
        self.values = _values_of(self.report, self._labels)
        if self._log is not None:
            self._log(self.values, number)
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


_MOST_LABELS = 100


def _values_of(report: AuditReport, labels: Sequence[Hashable]) -> dict[str, float]:
    """See `PeriodicAudit.values`."""
    named = labels if len(labels) <= _MOST_LABELS + 1 else ()
    kinds = {kind: f"audit/{kind.replace(' ', '_')}" for kind in get_args(Kind)}
    of_label = {label: f"audit/label_{label_name(label)}" for label in named}
    values = dict.fromkeys(("audit/leak", *kinds.values(), *of_label.values()), 0.0)
    for bypass in report.bypasses:
        members = [bypass.label] if bypass.label in of_label or not isinstance(bypass.label, tuple) else bypass.label
        keys = [of_label[label] for label in members if label in of_label]
        for key in ("audit/leak", kinds[bypass.kind], *keys):
            values[key] = max(values[key], bypass.share)
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


# ------------------------------------------------------------------ callbacks

LabelsOf = Callable[[Any], "tuple[Any, Labels | Sequence[Labels]]"]
"""From a trainer's batch to the batch that the step takes, and its labels."""


def lightning_callback(periodic: PeriodicAudit, split: LabelsOf) -> Any:
    """A Lightning callback that audits after each training batch, and logs by the module's `log_dict`.

    Args:
        periodic: What audits, and when.
        split: From the batch that the trainer gives, to the batch for the audit's step and its labels.

    Raises:
        ImportError: Lightning is missing.

    Examples:
        >>> import torch, gradroute as gr
        >>> model = torch.nn.Linear(3, 2)
        >>> router = gr.Router(model, {"": gr.RoutingSpec.one_per_label(2)})
        >>> check = PeriodicAudit(router, lambda x: model(x).square().mean(), every=100)
        >>> callback = lightning_callback(check, lambda batch: (batch["x"], batch["label"]))
        >>> callback.on_train_batch_end  # doctest: +ELLIPSIS
        <bound method ...>
    """
    try:
        from lightning.pytorch.callbacks import Callback  # noqa: PLC0415  # optional
    except ImportError as error:
        raise ImportError("lightning_callback needs Lightning: pip install lightning.") from error

    class AuditCallback(Callback):  # type: ignore[misc, valid-type, unused-ignore]
        def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            report = periodic(*split(batch))
            if report is not None:
                module.log_dict(periodic.values)

    return AuditCallback()


def transformers_callback(periodic: PeriodicAudit, batch: Any, labels: Labels | Sequence[Labels]) -> Any:
    """A transformers `TrainerCallback` that audits on one batch at each step's end; its callbacks never see batches.

    What it finds is added to the trainer's `log_history`.

    Args:
        periodic: What audits, and when.
        batch: The batch to audit on.
        labels: Its labels.

    Raises:
        ImportError: transformers is missing.

    Examples:
        >>> import torch, gradroute as gr
        >>> model = torch.nn.Linear(3, 2)
        >>> router = gr.Router(model, {"": gr.RoutingSpec.one_per_label(2)})
        >>> check = PeriodicAudit(router, lambda x: model(x).square().mean(), every=100)
        >>> callback = transformers_callback(check, torch.randn(4, 3), torch.tensor([0, 1, 0, 1]))
        >>> callback.on_step_end  # doctest: +ELLIPSIS
        <bound method ...>
    """
    try:
        from transformers import TrainerCallback  # noqa: PLC0415  # optional
    except ImportError as error:
        raise ImportError("transformers_callback needs transformers: pip install transformers.") from error

    class AuditCallback(TrainerCallback):  # type: ignore[misc, unused-ignore]
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            report = periodic(batch, labels)
            if report is not None:
                state.log_history.append({**periodic.values, "step": state.global_step})

    return AuditCallback()
