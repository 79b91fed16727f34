"""`RoutedCallback`: holds a router's block open through Lightning's backward pass."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from typing import Any

from ..errors import UsageError, missing_package

try:
    from lightning.pytorch.callbacks import Callback
except ImportError as error:
    raise ImportError(missing_package("callbacks of Lightning", "lightning", "lightning")) from error

from ..router import Router
from ..router._attachment import Labels
from ._label_collator import COLUMN

__all__ = ["RoutedCallback"]


class RoutedCallback(Callback):  # type: ignore[misc, unused-ignore]
    """A Lightning callback that puts each training batch inside of ``with router(labels)``, backward pass included.

    So activation checkpointing of either kind works, which recomputes in the backward pass. Nothing is added to the
    module, and checkpoints are those of the plain one. Validation is not routed.

    Args:
        router: The router, of a model in the LightningModule.
        labels_of: From the batch that `training_step` gets, to its labels; by default the batch's ``route_labels``.

    Raises:
        UsageError: When training starts, the router's model is no part of the LightningModule. In a step, the batch has
            no labels.

    Examples:
        >>> import torch, gradroute as gr
        >>> model = torch.nn.Linear(3, 2)
        >>> router = gr.Router(model, {"": gr.RoutingSpec.one_per_label(2)})
        >>> RoutedCallback(router, labels_of=lambda batch: batch[2]).router is router
        True
    """

    def __init__(self, router: Router, labels_of: Callable[[Any], Labels] | None = None) -> None:
        self.router = router
        self._labels_of = labels_of or _column_of
        self._block = contextlib.ExitStack()

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Check that the router's model is trained.

        Raises:
            UsageError: It is no part of the module.
        """
        if all(module is not self.router.model for module in pl_module.modules()):
            raise UsageError(
                f"the router is attached to another model than those in this {type(pl_module).__name__}: nothing that "
                "is trained would be routed. Make the router of the very model that training_step calls."
            )

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Open the block.

        Raises:
            UsageError: The batch has no labels.
            LabelError: The labels do not fit the router's specs.
        """
        self._block.close()  # if the last batch was left before its end
        self._block.enter_context(self.router(self._labels_of(batch)))

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Close it."""
        self._block.close()

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Close it, if the module ended the epoch from within a batch."""
        self._block.close()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Close it."""
        self._block.close()


def _column_of(batch: Any) -> Labels:
    if not isinstance(batch, Mapping) or batch.get(COLUMN) is None:
        given = sorted(batch) if isinstance(batch, Mapping) else f"a {type(batch).__name__}"
        raise UsageError(
            f"a training batch has no {COLUMN}: nothing would be routed. Give it an entry of that name, or say by "
            f"RoutedCallback(router, labels_of=...) where its labels are. It is {given}."
        )
    labels: Labels = batch[COLUMN]
    return labels
