"""`RoutedModule`: labels as an argument."""

import copy
import pickle

import pytest
import torch
from torch import nn

import gradroute as gr
from gradroute.errors import UsageError
from unit.router.small import LABELS, SPEC, bias_gradient, mlp


class TestRoutedModule:
    def test_routes_by_the_argument_and_passes_the_rest_on(self):
        class Model(nn.Module):
            def __init__(self):
                super().__init__()
                self.fc = nn.Linear(2, 3)

            def forward(self, x, *, labels):
                return self.fc(x).sum() + labels

        routed = gr.RoutedModule(Model(), {"fc": SPEC})
        routed(torch.ones(2, 2), labels=5, route_labels=torch.tensor([1, 1])).backward()
        assert routed.module.fc.bias.grad.tolist() == [0, 2, 0]
        assert routed.router.labels is None

    def test_a_training_pass_without_labels_is_refused(self):
        routed = gr.RoutedModule(mlp(), {"0": SPEC})
        with pytest.raises(UsageError, match="a training forward pass without route_labels would not be routed"):
            routed(torch.ones(2, 2))
        with routed.router(LABELS):
            assert bias_gradient(routed.module)[1] == 0
            routed(torch.ones(2, 2))

    def test_evaluation_needs_no_labels_and_is_the_model(self):
        model = mlp()
        routed = gr.RoutedModule(model, {"0": SPEC})
        with torch.no_grad():
            assert torch.equal(routed(torch.ones(2, 2)), model(torch.ones(2, 2)))
        assert torch.equal(routed.eval()(torch.ones(2, 2)), model(torch.ones(2, 2)))

    def test_lends_the_attributes_of_the_model(self):
        model = mlp()
        model.config = "config"
        routed = gr.RoutedModule(model, {"0": SPEC})
        assert routed.config == "config"
        with pytest.raises(AttributeError, match="nothing"):
            routed.nothing

    @pytest.mark.parametrize(
        "again", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))], ids=["deepcopy", "pickle"]
    )
    def test_copies_route_on_their_own(self, again):
        routed = gr.RoutedModule(mlp(), {"0": SPEC})
        twin = again(routed)
        for module in (routed, twin):
            module(torch.ones(2, 2), route_labels=LABELS).sum().backward()
        assert torch.equal(twin.module[0].bias.grad, routed.module[0].bias.grad)
        assert twin.module[0].bias.grad[1] == 0


def test_labels_that_come_late_need_a_block_and_no_argument():
    routed = gr.RoutedModule(nn.Linear(2, 3), {"": SPEC})
    with routed.router.deferred() as later:
        loss = routed(torch.ones(2, 2)).sum()
        routed(torch.ones(2, 2), route_labels=torch.tensor([1, 1])).sum().backward()  # a block of its own
    assert routed.module.bias.grad.tolist() == [0, 2, 0]
    routed.zero_grad()
    later.set(torch.tensor([0, 2]))
    loss.backward()
    assert routed.module.bias.grad.tolist() == [1, 0, 1]
