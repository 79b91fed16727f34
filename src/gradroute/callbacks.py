"""A `PeriodicAudit` as a callback of Lightning or of transformers; neither is imported before it is asked for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .audit_periodic import PeriodicAudit, values_of
from .router import Labels

LabelsOf = Callable[[Any], "tuple[Any, Labels]"]


def lightning_callback(periodic: PeriodicAudit, split: LabelsOf) -> Any:
    """A Lightning callback that audits after each training batch, and logs by the module's `log_dict`.

    Args:
        periodic: What audits, and when.
        split: From the batch that the trainer gives, to the batch for the audit's step and its labels.

    Raises:
        ImportError: Lightning is missing.
    """
    try:
        from lightning.pytorch.callbacks import Callback  # noqa: PLC0415  # optional
    except ImportError as error:
        raise ImportError("lightning_callback needs Lightning: pip install lightning.") from error

    class AuditCallback(Callback):  # type: ignore[misc, valid-type, unused-ignore]
        def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            report = periodic(*split(batch))
            if report is not None:
                module.log_dict(values_of(report))

    return AuditCallback()


def transformers_callback(periodic: PeriodicAudit, batch: Any, labels: Labels) -> Any:
    """A transformers `TrainerCallback` that audits on one batch at each step's end; its callbacks never see batches.

    What it finds is added to the trainer's `log_history`.

    Args:
        periodic: What audits, and when.
        batch: The batch to audit on.
        labels: Its labels.

    Raises:
        ImportError: transformers is missing.
    """
    try:
        from transformers import TrainerCallback  # noqa: PLC0415  # optional
    except ImportError as error:
        raise ImportError("transformers_callback needs transformers: pip install transformers.") from error

    class AuditCallback(TrainerCallback):  # type: ignore[misc, unused-ignore]
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            report = periodic(batch, labels)
            if report is not None:
                state.log_history.append({**values_of(report), "step": state.global_step})

    return AuditCallback()
