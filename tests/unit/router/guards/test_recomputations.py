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


class Nested(nn.Module):
    """Checkpoints in one another, with layers before and after in each; of a kind each: none, or (non-)reentrant."""

    def __init__(self, outer, inner):
        super().__init__()
        torch.manual_seed(0)
        self.kinds = outer, inner
        self.before, self.site, self.after = nn.Linear(2, 4), nn.Linear(4, 3), nn.Linear(3, 4)

    def forward(self, x):
        return run_as(self.kinds[0], self.around, x).square().sum()

    def around(self, x):
        return self.after(run_as(self.kinds[1], self.inside, self.before(x).tanh())).tanh()

    def inside(self, x):
        return self.site(x).tanh()


def run_as(kind, function, x):
    return function(x) if kind == "none" else checkpoint(function, x, use_reentrant=kind == "reentrant")


def nested_gradients(kinds, site, where):
    model = Nested(*kinds)
    router = gr.Router(model, {"site": site})
    x = torch.linspace(-1, 1, 4).view(2, 2).requires_grad_()
    with router(torch.tensor([0, 1])):
        loss = model(x)
        if where == "in its block":
            loss.backward()
    if where == "after it":
        loss.backward()
    if where == "in another block":
        with router(torch.tensor([2, 2])):
            loss.backward()
    return [x.grad, *(parameter.grad for parameter in model.parameters())]


KINDS = ["none", "plain", "reentrant"]


@pytest.mark.filterwarnings("error::gradroute.UnroutedWarning", "ignore:None of the inputs have requires_grad")
# Where something raises in a checkpoint inside of backward, torch 2.8 cleans up too late.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("early_stop", [True, False])
@pytest.mark.parametrize("where", ["in its block", "after it", "in another block"])
@pytest.mark.parametrize("inner", KINDS)
@pytest.mark.parametrize("outer", KINDS)
def test_checkpoints_in_one_another_are_as_right_as_one_or_refused(outer, inner, where, early_stop):
    """A pass in the inner one may be recomputed with each of those around it, too."""
    for silent in (None, "others"):
        for level in ("activations", "parameters"):
            site = gr.Site(gr.RoutingSpec.one_per_label(3, silent=silent), level=level)
            expected = nested_gradients(("none", "none"), site, "in its block")
            with torch.utils.checkpoint.set_checkpoint_early_stop(early_stop):
                if where != "in its block" and "reentrant" in (outer, inner):
                    with pytest.raises(UsageError, match="does not hold the labels"):
                        nested_gradients((outer, inner), site, where)
                else:
                    torch.testing.assert_close(nested_gradients((outer, inner), site, where), expected)
