"""A batch is cut up by label, whatever nest of tensors it is and whatever kind its labels are of."""

import dataclasses
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import gradroute as gr
from gradroute import audit
from planted import READS, SPEC, WIDTH, N, labels
from unit.diagnostics.clean import found, net, step_of

pytestmark = pytest.mark.filterwarnings(r"ignore:`torch\.jit\.script(_method)?` is deprecated")


class Batch(NamedTuple):
    images: torch.Tensor
    extra: dict


def test_labels_may_be_missing_from_the_batch_and_from_examples():
    model = nn.Sequential(nn.Linear(5, WIDTH), nn.Linear(WIDTH, 3, bias=False))
    spec = gr.RoutingSpec({0: 0, 1: 1, 2: [2, 3]}, WIDTH)
    ids = torch.tensor([2, -1, 2, -1, 2, -1, 0, 0])
    report = audit(gr.Router(model, {"0": spec}), step_of(model), torch.randn(N, 5), ids)
    assert report.labels == (0, 2, gr.UNLABELED)
    assert report.examples == (2, 3, 3)
    assert {bypass.label for bypass in report.bypasses} == {0, 2}  # unlabeled examples may teach all units
    none = gr.RoutingSpec({0: [0, 1], 1: [2, 3]}, WIDTH, unlabeled="none")
    model = net()
    ids = torch.tensor([0, -1] * 4)
    assert audit(gr.Router(model, {"0": none, "2": dataclasses.replace(READS, spec=none)}), step_of(model),
                 torch.randn(N, 5), ids).clean  # fmt: skip
    report = audit(gr.Router(net(), {"0": none}), step_of(model), torch.randn(N, 5), ids)
    assert report.notes


@pytest.mark.parametrize("kind", ["names", "multi-hot", "mixture", "per pattern", "one for the batch"])
def test_labels_of_every_kind(kind):
    model = net()
    spec = gr.RoutingSpec({"a": [0, 1], "b": [2, 3]}, WIDTH)
    router = gr.Router(model, {"0": spec})
    ids = torch.arange(N) % 2
    rows = F.one_hot(ids, 2)
    given = {
        "names": ids,
        "multi-hot": rows.bool(),
        "mixture": rows.float() * 0.5,
        "per pattern": {"0": ids},
        "one for the batch": torch.tensor(1),
    }[kind]
    report = audit(router, step_of(model), torch.randn(N, 5), given)
    assert found(report) == {("2.weight", "reader")}
    assert report.labels == (("b",) if kind == "one for the batch" else ("a", "b"))


def test_examples_with_several_labels_may_teach_what_any_of_them_may():
    model = net()
    rows = torch.tensor([[True, False], [True, True], [True, True], [False, True]])
    report = audit(gr.Router(model, {"0": SPEC}), step_of(model), torch.randn(4, 5), rows)
    assert (0, 1) in report.labels
    assert {bypass.label for bypass in report.bypasses} == {0, 1}


def test_labels_per_token_are_tried_on_all_tokens():
    model = net()
    router = gr.Router(model, {"0": SPEC})
    tokens = torch.tensor([[0, 0, 1], [0, 0, 0], [1, 1, -1]])
    report = audit(router, step_of(model), torch.randn(3, 3, 5), tokens)
    assert report.labels == (0, 1, gr.UNLABELED)
    assert report.examples == (2, 2, 1)
    assert found(report) == {("2.weight", "reader")}
    assert any("per token" in note for note in report.notes)
    multi_hot = F.one_hot(tokens.clamp(min=0), 2).bool()
    assert found(audit(router, step_of(model), torch.randn(3, 3, 5), multi_hot)) == {("2.weight", "reader")}


def test_a_batch_may_be_any_nest_and_the_step_may_use_the_router_itself():
    model = gr.RoutedModule(net(), {"0": SPEC})
    ids = labels()

    def step(batch):
        assert len(batch.images) == len(batch.extra["ids"][0]) == len(batch.extra["array"])
        return model(batch.images, route_labels=batch.extra["ids"][0]).square().mean()

    batch = Batch(
        torch.randn(N, 5), {"ids": [ids], "array": np.arange(N), "text": "as it is", "scale": torch.tensor(1)}
    )
    report = audit(model.router, step, batch, ids)
    assert found(report) == {("2.weight", "reader")}
    assert report.sites[0].unrouted[0][3] > 0  # also where the step itself routes
