"""A forward pass that is recomputed under other labels is refused, and under the same ones trusted."""

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import gradroute as gr
from gradroute.errors import UsageError
from unit.router.small import SPEC


@pytest.mark.parametrize("change", ["written", "written where nothing counts it", "another"])
def test_labels_that_are_not_those_of_the_first_pass_are_refused(change):
    """Whichever of several it is, and though the tensor itself is the same one."""
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 3))
    spec = gr.RoutingSpec.one_per_label(3)
    router = gr.Router(model, {"0": spec, "1": spec})
    x = torch.ones(2, 2, requires_grad=True)
    first, second = torch.tensor([0, 1]), torch.tensor([0, 1])
    with router({"0": first, "1": second}):
        loss = checkpoint(model, x, use_reentrant=True).sum()
    if change == "written":
        second.fill_(2)
    elif change == "written where nothing counts it":
        second.data.fill_(2)
    else:
        second = torch.tensor([2, 2])
    with router({"0": first, "1": second}), pytest.raises(UsageError, match="does not hold the labels"):
        loss.backward()


@pytest.mark.parametrize("kind", ["ids", "sets", "mixtures"])
def test_another_block_of_the_same_labels_is_trusted(kind):
    model = nn.Sequential(nn.Linear(2, 3))
    router = gr.Router(model, {"0": SPEC})
    labels = torch.tensor([0, 1])
    if kind != "ids":
        labels = nn.functional.one_hot(labels, 3).to(torch.bool if kind == "sets" else torch.float32)
    with router(labels):
        loss = checkpoint(model, torch.ones(2, 2, requires_grad=True), use_reentrant=True).sum()
    with router(labels):
        loss.backward()
    assert model[0].bias.grad.tolist() == [1, 1, 0]
