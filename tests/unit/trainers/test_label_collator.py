"""`LabelCollator`: labels go past the other collator, and never to a token that is not theirs."""

import copy
import pickle

import numpy as np
import pytest
import torch
from torch.utils.data import default_collate
from transformers import default_data_collator

from gradroute import UNLABELED
from gradroute.errors import LabelError
from gradroute.trainers import LabelCollator

IDS = {"retain": 0, "forget": 1}


def padded(features, *, left=False):
    """What a tokenizer's padding does; it would not know how to pad another column."""
    assert all(feature.keys() == {"input_ids"} for feature in features)
    width = max(len(feature["input_ids"]) for feature in features) + 1
    tokens, mask = (torch.zeros(len(features), width, dtype=torch.long) for _ in range(2))
    for row, feature in enumerate(features):
        count = len(feature["input_ids"])
        here = slice(width - count, None) if left else slice(0, count)
        tokens[row, here], mask[row, here] = torch.tensor(feature["input_ids"]), 1
    return {"input_ids": tokens, "attention_mask": mask}


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        ([1, 0], torch.tensor([1, 0])),
        (["forget", "retain"], torch.tensor([1, 0])),
        ([torch.tensor(1), torch.tensor(UNLABELED)], torch.tensor([1, UNLABELED])),
        ([[1, 0, 1], [0, 0, 1]], torch.tensor([[1, 0, 1], [0, 0, 1]])),
        ([["forget", "retain"], ["retain", "retain"]], torch.tensor([[1, 0], [0, 0]])),
        ([np.array([True, False]), np.array([True, True])], torch.tensor([[True, False], [True, True]])),
        ([[0.5, 0.5], [1.0, 0.0]], torch.tensor([[0.5, 0.5], [1.0, 0.0]])),
    ],
)
def test_each_form_of_labels_becomes_one_tensor(column, expected):
    features = [{"x": float(number), "route_labels": label} for number, label in enumerate(column)]
    batch = LabelCollator(default_data_collator, IDS)(features)
    torch.testing.assert_close(batch["route_labels"], expected, rtol=0, atol=0)
    assert batch["x"].tolist() == [0.0, 1.0]


def test_a_mapping_is_collated_by_its_patterns():
    features = [{"x": 0.0, "route_labels": {"a": 1, "b": [0, 1]}}, {"x": 1.0, "route_labels": {"a": 0, "b": [1, 1]}}]
    labels = LabelCollator(default_collate)(features)["route_labels"]
    assert {pattern: each.tolist() for pattern, each in labels.items()} == {"a": [1, 0], "b": [[0, 1], [1, 1]]}


@pytest.mark.parametrize("left", [False, True])
@pytest.mark.parametrize("members", [False, True], ids=["ids", "multi-hot"])
def test_labels_of_tokens_lie_where_the_tokens_do_and_padding_teaches_nothing_new(left, members):
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randint(0, 2, (count, 3) if members else (count,), generator=generator) for count in (3, 5, 1)]
    rows = [row.bool() for row in rows] if members else rows
    features = [{"input_ids": [7] * len(row), "route_labels": row} for row in rows]
    batch = LabelCollator(lambda each: padded(each, left=left))(features)
    for row, labels, mask in zip(rows, batch["route_labels"], batch["attention_mask"].bool(), strict=True):
        torch.testing.assert_close(labels[mask], row, rtol=0, atol=0)
        own = {str(label) for label in row.tolist()}
        assert {str(label) for label in labels[~mask].tolist()} <= own


def test_without_labels_the_other_collator_has_its_way():
    def makes_them_itself(features):
        return {**default_collate(features), "route_labels": torch.zeros(len(features), dtype=torch.long)}

    assert LabelCollator(default_collate)([{"x": 1.0}, {"x": 2.0}]).keys() == {"x"}
    assert LabelCollator(makes_them_itself)([{"x": 1.0}])["route_labels"].tolist() == [0]


def test_an_example_without_a_label_among_labeled_ones_is_refused():
    features = [{"x": 1.0}, {"x": 1.0, "route_labels": 1}, {"x": 1.0, "route_labels": None}]
    with pytest.raises(LabelError, match="2 of the 3 examples .* no route_labels. Write gradroute.UNLABELED"):
        LabelCollator(default_collate)(features)


def test_labels_that_do_not_fit_the_tokens_are_refused():
    features = [{"input_ids": [7, 7, 7], "route_labels": [0, 1]}, {"input_ids": [7], "route_labels": [0]}]
    with pytest.raises(LabelError, match="2 route_labels for 3 tokens"):
        LabelCollator(padded)(features)
    with pytest.raises(LabelError, match="no attention_mask of that shape"):
        LabelCollator(lambda each: {"input_ids": padded(each)["input_ids"]})(features)


def test_examples_joined_into_one_row_are_refused():
    features = [{"input_ids": [7, 7], "route_labels": 0}, {"input_ids": [7], "route_labels": 1}]
    with pytest.raises(LabelError, match=r"shape \(1, 3\) out of 2 examples.*padding_free"):
        LabelCollator(lambda each: {"input_ids": torch.tensor([[7, 7, 7]])})(features)


def test_labels_of_examples_and_of_tokens_do_not_mix():
    features = [{"x": 1.0, "route_labels": 0}, {"x": 1.0, "route_labels": [0, 1]}]
    with pytest.raises(LabelError, match="different shapes"):
        LabelCollator(default_collate)(features)


def test_an_unknown_name_is_refused():
    with pytest.raises(LabelError, match="'forgot' is no label. Did you mean 'forget'"):
        LabelCollator(default_collate, IDS)([{"x": 1.0, "route_labels": "forgot"}])


class WithTokenizer:
    tokenizer = "of its own"

    def __call__(self, features):
        return default_collate(features)


@pytest.mark.parametrize("again", [lambda it: it, copy.deepcopy, lambda it: pickle.loads(pickle.dumps(it))])
def test_it_stands_for_the_other_collator_in_workers_too(again):
    collator = again(LabelCollator(WithTokenizer(), IDS))
    assert collator.tokenizer == "of its own"
    assert collator([{"x": 1.0, "route_labels": "forget"}])["route_labels"].tolist() == [1]
