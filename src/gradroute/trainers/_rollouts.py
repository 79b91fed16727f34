"""`RoutedRolloutsMixin`: for trainers that make their own examples, such as TRL's `GRPOTrainer`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ..errors import LabelError
from ._label_collator import COLUMN, label_rows, labels_in, stacked
from ._mixin import RoutedTrainerMixin

__all__ = ["RoutedRolloutsMixin"]


class RoutedRolloutsMixin(RoutedTrainerMixin):
    """`RoutedTrainerMixin` for TRL's `GRPOTrainer`: each rollout has one label, by which its loss is routed.

    ``class RoutedGRPOTrainer(RoutedRolloutsMixin, GRPOTrainer): ...``. The label is that of the rollout's prompt, in
    the column ``route_labels``; or what `label_rollouts` says of the rollout itself. Generation is not routed: it has
    no backward pass.

    Args:
        *args: The trainer's own.
        label_rollouts: Called as TRL calls a reward function, with ``prompts``, ``completions``, ``completion_ids`` and
            the columns of the data, each a list with one entry for each rollout; returns a label for each.
        **kwargs: The trainer's own, and those of `RoutedTrainerMixin`.

    Raises:
        LabelError: In a step, `label_rollouts` returns another number of labels than there are rollouts.
        UsageError: As `RoutedTrainerMixin`.
        SiteError: As `Router`.
        SpecError: As `RoutedTrainerMixin`.

    Examples:
        >>> def label_rollouts(completions, **columns):
        ...     return ["forget" if "shortcut" in text else "retain" for text in completions]
        >>> label_rollouts(completions=["a shortcut", "the long way"])
        ['forget', 'retain']
    """

    def __init__(self, *args: Any, label_rollouts: Callable[..., Sequence[Any]] | None = None, **kwargs: Any) -> None:
        self._label_rollouts = label_rollouts
        self._rollout_labels: list[Any] | None = None
        super().__init__(*args, **kwargs)

    def _calculate_rewards(self, inputs: Any, prompts: Any, completions: Any, completion_ids: Any) -> Any:
        if self._label_rollouts is not None:
            known = ("prompt", "completion", "completion_ids", COLUMN)
            columns = {key: [example[key] for example in inputs] for key in inputs[0] if key not in known}
            labels = self._label_rollouts(
                prompts=prompts, completions=completions, completion_ids=completion_ids, **columns
            )
            if len(labels) != len(prompts):
                raise LabelError(f"label_rollouts returned {len(labels)} labels for {len(prompts)} rollouts.")
            self._rollout_labels = list(labels)
        return self._parent._calculate_rewards(inputs, prompts, completions, completion_ids)

    def _generate_and_score_completions(self, inputs: Any) -> Any:
        self._rollout_labels = None
        output = self._parent._generate_and_score_completions(inputs)
        labels = self._rollout_labels if self._label_rollouts is not None else labels_in(inputs)
        if labels is not None:
            # The trainer shuffles and cuts this up along with the rest.
            output[COLUMN] = stacked(label_rows(labels, self._ids)).to(output["completion_ids"].device)
        return output

    def _wrap_collator(self) -> None:
        """No collator: the trainer's own keeps the examples as they are."""
