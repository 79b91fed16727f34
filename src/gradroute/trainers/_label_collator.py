"""`LabelCollator`: takes the labels of a batch's examples past a collator that knows nothing of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import LabelError, did_you_mean, preview

__all__ = ["COLUMN", "LabelCollator", "label_rows", "labels_in", "stacked"]

#: The column of a data set, and the entry of a batch, that holds the labels.
COLUMN = "route_labels"


class LabelCollator:
    """A data collator that adds ``route_labels`` to what another one makes of the rest.

    The other collator never sees the labels: most drop a column that they do not know, or fail at it. Labels per token
    are laid where the batch's ``attention_mask`` has the example's tokens; padding gets the label of the example's last
    token, so that it may teach nothing that the example does not.

    Args:
        collator: Any data collator of transformers or TRL.
        ids: From label names to their ids, for columns that hold names.

    Raises:
        LabelError: Some examples of a batch have labels and others none; or labels do not fit the tokens.

    Examples:
        >>> from torch.utils.data import default_collate
        >>> collator = LabelCollator(default_collate, {"retain": 0, "forget": 1})
        >>> collator([{"x": 1.0, "route_labels": "forget"}, {"x": 2.0, "route_labels": "retain"}])["route_labels"]
        tensor([1, 0])
    """

    def __init__(self, collator: Callable[[list[Any]], Any], ids: Mapping[Any, int] | None = None) -> None:
        self.collator = collator
        self.ids = dict(ids or {})

    def __call__(self, features: Sequence[Any]) -> Any:
        """The batch of these examples, with their labels.

        Raises:
            LabelError: As the class says.
        """
        examples = [dict(feature) if isinstance(feature, Mapping) else dict(vars(feature)) for feature in features]
        labels = labels_in(examples)
        if labels is None:
            return self.collator(list(features))  # which may make labels itself
        batch = self.collator([{key: example[key] for key in example if key != COLUMN} for example in examples])
        if isinstance(labels[0], Mapping):  # from the router's patterns to labels
            batch[COLUMN] = {
                pattern: self._joined([label[pattern] for label in labels], batch) for pattern in labels[0]
            }
        else:
            batch[COLUMN] = self._joined(labels, batch)
        return batch

    def __getattr__(self, name: str) -> Any:
        """Attributes of the other collator, such as its `tokenizer`, which trainers ask for."""
        if name == "collator":  # not yet set: while copying or unpickling
            raise AttributeError(name)
        return getattr(self.collator, name)

    def _joined(self, labels: Sequence[Any], batch: Any) -> Tensor:
        rows = label_rows(labels, self.ids)
        tokens = batch.get("input_ids")
        if isinstance(tokens, Tensor) and len(tokens) != len(rows):
            raise LabelError(
                f"the collator made input_ids of shape {tuple(tokens.shape)} out of {len(rows)} examples, so labels no "
                "longer say which tokens are theirs. Turn off what joins examples into one row: padding_free, packing."
            )
        if _is_per_token(rows[0]) and isinstance(tokens, Tensor) and tokens.ndim == 2:
            rows = _along_tokens(rows, tokens, batch.get("attention_mask"))
        return stacked(rows)


def labels_in(examples: Sequence[Mapping[str, Any]]) -> list[Any] | None:
    """The labels of these examples; None if none of them has any.

    Raises:
        LabelError: Some have labels, and others none.
    """
    labels = [example.get(COLUMN) for example in examples]
    missing = sum(label is None for label in labels)
    if 0 < missing < len(labels):
        raise LabelError(
            f"{missing} of the {len(labels)} examples of a batch have no {COLUMN}. Write gradroute.UNLABELED (-1) for "
            "each example whose label is unknown."
        )
    return None if missing else labels


def label_rows(labels: Sequence[Any], ids: Mapping[Any, int]) -> list[Tensor]:
    """Each example's label, or labels, as a tensor; names become their ids.

    Raises:
        LabelError: A name is no label.
    """

    def encoded(label: Any) -> Any:
        if isinstance(label, str):
            if label not in ids:
                raise LabelError(f"{label!r} is no label. {did_you_mean(label, ids)}")
            return ids[label]
        return [encoded(each) for each in label] if isinstance(label, list | tuple) else label

    return [torch.as_tensor(encoded(label)) for label in labels]


def stacked(rows: Sequence[Tensor]) -> Tensor:
    """The labels of a batch.

    Raises:
        LabelError: They have different shapes.
    """
    if len({row.shape for row in rows}) > 1:
        raise LabelError(
            f"the {COLUMN} of a batch have different shapes: {preview([tuple(row.shape) for row in rows])}. Give each "
            "example one label, or one label for each token."
        )
    return torch.stack(list(rows))


def _is_per_token(row: Tensor) -> bool:
    """Whether its first dimension is that of tokens: memberships and mixtures have one of labels, too."""
    return row.ndim - (row.dtype == torch.bool or row.is_floating_point()) >= 1


def _along_tokens(rows: list[Tensor], tokens: Tensor, mask: Any) -> list[Tensor]:
    width = tokens.shape[1]
    if all(len(row) == width for row in rows):
        return rows
    if not isinstance(mask, Tensor) or mask.shape != tokens.shape:
        raise LabelError(
            f"{COLUMN} for {preview([len(row) for row in rows])} tokens do not fit input_ids of shape "
            f"{tuple(tokens.shape)}, and there is no attention_mask of that shape to say where the padding is."
        )
    padded = []
    for row, here in zip(rows, mask.bool(), strict=True):
        if len(row) != int(here.sum()) or not len(row):
            raise LabelError(
                f"an example has {len(row)} {COLUMN} for {int(here.sum())} tokens: give it one label for each token "
                "that is left after truncation, or a single one."
            )
        whole = row[-1].expand(width, *row.shape[1:]).clone()
        whole[here.to(whole.device)] = row
        padded.append(whole)
    return padded
