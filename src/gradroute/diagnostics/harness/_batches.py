"""The examples of a batch in groups of one label each, and the batch cut down to one of them."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...errors import LabelError, UsageError, preview
from ...router._attachment import Labels, attachment_of
from ...router._router import Router
from ...spec._masks import UNLABELED
from ...spec._spec import RoutingSpec


@dataclass(frozen=True)
class Group:
    """The examples of one label.

    Attributes:
        label: The label; -1 for unlabeled examples, a tuple for examples with several labels.
        examples: Their positions in the batch, int64 [n]. None: all of it, with one label for the batch.
        labels: Their labels, as the router takes them.
    """

    label: Hashable
    examples: Tensor | None
    labels: Labels

    def __len__(self) -> int:
        return 1 if self.examples is None else len(self.examples)


def group_by_label(router: Router, labels: Labels) -> tuple[list[Group], bool]:
    """The groups in the order of their labels, unlabeled examples last; and whether labels are per token.

    Examples with several labels (multi-hot) are grouped by their set of labels, mixtures by which labels have a part.

    Labels per token cannot be told apart like that, since the loss of a token depends on the tokens around it. So for
    each label there is a group of the examples in which it occurs, with that label for *all* of their tokens.

    Raises:
        LabelError: The labels do not fit the router's specs, or are per example in one site and per token in another.
    """
    for mask in attachment_of(router).masks(labels):
        mask.check_device(torch.device("cpu"))
    patterns = dict(attachment_of(router).groups)
    if not isinstance(labels, Mapping):
        spec = next(iter(patterns.values()))
        return _group(labels, spec)
    keyed = {pattern: _keys(tensor, patterns[pattern]) for pattern, tensor in labels.items()}
    if any(keys is None for keys in keyed.values()):
        raise LabelError("an audit with labels for each pattern needs one label per example, and none per token.")
    sizes = {len(keys) for keys in keyed.values() if keys is not None}
    if len(sizes) > 1:
        raise LabelError(f"the labels of the patterns are for {preview(sizes)} examples: expected one number.")
    columns = [keys for keys in keyed.values() if keys is not None]
    rows = [row[0] if len({*row}) == 1 else row for row in zip(*columns, strict=True)]
    groups = []
    for key in _ordered(rows):
        examples = _positions(rows, key)
        groups.append(Group(key, examples, {name: _take(tensor, examples) for name, tensor in labels.items()}))
    return groups, False


def _group(labels: Tensor, spec: RoutingSpec) -> tuple[list[Group], bool]:
    keys = _keys(labels, spec)
    if keys is not None:
        if labels.ndim == 0:
            return [Group(keys[0], None, labels)], False
        found = ((key, _positions(keys, key)) for key in _ordered(keys))
        return [Group(key, examples, _take(labels, examples)) for key, examples in found], False
    flat, columns = (labels.flatten(1), 0) if not _has_columns(labels) else (labels.flatten(1, -2), 1)
    entries = flat.reshape(-1, *flat.shape[2:])
    of_token = _keys(entries, spec)
    assert of_token is not None
    per_example = flat.shape[1]
    groups = []
    for key in _ordered(of_token):
        where = [position for position, found in enumerate(of_token) if found == key]
        examples = torch.tensor(sorted({position // per_example for position in where}), device="cpu")
        one = entries[where[0]]
        shape = (len(examples), *labels.shape[1 : labels.ndim - columns], *one.shape)
        groups.append(Group(key, examples, one.expand(shape).clone()))
    return groups, True


def _has_columns(labels: Tensor) -> bool:
    return labels.dtype == torch.bool or labels.is_floating_point()


def _keys(labels: Tensor, spec: RoutingSpec) -> list[Hashable] | None:
    """For each example what its group is called; None where labels are per token."""
    if labels.ndim - _has_columns(labels) > 1:
        return None
    if not _has_columns(labels):
        names = labels.reshape(-1).tolist()
        return [name if name == UNLABELED or spec.integer_keys else spec.labels[name] for name in names]
    rows = (labels != 0).reshape(-1, labels.shape[-1]).tolist()
    found: list[Hashable] = []
    for row in rows:
        chosen = tuple(label for label, part in zip(spec.labels, row, strict=True) if part)
        found.append(chosen[0] if len(chosen) == 1 else chosen or UNLABELED)
    return found


def _ordered(keys: list[Hashable]) -> list[Hashable]:
    """Each key once, -1 last."""
    distinct = list(dict.fromkeys(keys))
    try:
        distinct = sorted(distinct)  # type: ignore[type-var]
    except TypeError:
        distinct.sort(key=lambda key: (type(key).__name__, str(key)))
    return [key for key in distinct if key != UNLABELED] + [key for key in distinct if key == UNLABELED]


def _positions(keys: list[Hashable], wanted: Hashable) -> Tensor:
    return torch.tensor([position for position, key in enumerate(keys) if key == wanted], device="cpu")


def _take(tensor: Tensor, examples: Tensor) -> Tensor:
    return tensor.index_select(0, examples.to(tensor.device))


# ------------------------------------------------------------------ the batch


def batch_size(labels: Labels) -> int | None:
    """The number of examples that the labels are for; None for one label for the batch."""
    tensor = next(iter(labels.values())) if isinstance(labels, Mapping) else labels
    return len(tensor) if tensor.ndim > 0 else None


def few_of_each(router: Router, batch: Any, labels: Labels, most: int) -> tuple[Any, Labels]:
    """The batch and its labels cut down to a few examples of each label."""
    size = batch_size(labels)
    groups, _ = group_by_label(router, labels)
    if size is None or any(group.examples is None for group in groups):
        return batch, labels
    kept = sorted({number for g in groups if g.examples is not None for number in g.examples[:most].tolist()})
    examples = torch.tensor(kept, device="cpu")
    if isinstance(labels, Mapping):
        return take(batch, examples, size), {pattern: _take(tensor, examples) for pattern, tensor in labels.items()}
    return take(batch, examples, size), _take(labels, examples)


def length(batch: Any) -> int | None:
    """The length of the first tensor in a nest; None where there is none."""
    if isinstance(batch, Tensor | np.ndarray):
        return len(batch) if batch.ndim else None
    if isinstance(batch, Mapping):
        batch = list(batch.values())
    elif dataclasses.is_dataclass(batch) and not isinstance(batch, type):
        batch = [getattr(batch, field.name) for field in dataclasses.fields(batch)]
    found = (length(item) for item in batch) if isinstance(batch, tuple | list) else ()
    return next((n for n in found if n is not None), None)


def take(batch: Any, examples: Tensor | None, size: int | None) -> Any:  # noqa: PLR0911  # one for each kind of nest
    """The batch cut down to these examples: every tensor and array in it, whatever they are nested in.

    Raises:
        UsageError: A tensor does not have the batch first.
    """
    if examples is None or size is None:
        return batch
    if isinstance(batch, Tensor | np.ndarray):
        if batch.ndim == 0:
            return batch
        if len(batch) != size:
            raise UsageError(
                f"the labels are for {size} examples, but the batch holds a tensor of shape {tuple(batch.shape)}: an "
                "audit takes examples out of the batch, so every tensor in it must have the batch first. Give `step` "
                "by a closure what is not part of the batch."
            )
        return _take(batch, examples) if isinstance(batch, Tensor) else batch[examples.numpy()]
    if isinstance(batch, tuple):
        items = [take(item, examples, size) for item in batch]
        return type(batch)(*items) if hasattr(batch, "_fields") else tuple(items)
    if isinstance(batch, list):
        return [take(item, examples, size) for item in batch]
    if isinstance(batch, Mapping):
        changed = {key: take(value, examples, size) for key, value in batch.items()}
        if type(batch) is dict:
            return changed
        whole = copy.copy(batch)
        for key, value in changed.items():
            whole[key] = value  # type: ignore[index]  # such as transformers' BatchEncoding
        return whole
    if dataclasses.is_dataclass(batch) and not isinstance(batch, type):
        fields = {field.name: getattr(batch, field.name) for field in dataclasses.fields(batch)}
        return dataclasses.replace(batch, **{name: take(value, examples, size) for name, value in fields.items()})
    return batch
