"""A module that runs on other tensors than its own, also where its weights are no parameters."""

import pytest
import torch
from torch import nn

import gradroute as gr
from unit.router.unknown import RETAIN, SPEC, WIDTH, Projected


@pytest.mark.parametrize("bias", ["frozen", "none", "learns"])
def test_weights_computed_of_others_learn_by_route(bias):
    """As in MAML, where a step is taken on weights before they are used."""
    layer = nn.Linear(3, WIDTH, bias=bias != "none")
    w = nn.Parameter(layer.weight.detach().clone())
    del layer.weight
    layer.weight = w - 0.5 * w.detach()
    if bias == "frozen":
        layer.bias.requires_grad_(False)
    with gr.Router(layer, {"": gr.Site(SPEC, level="parameters")})(RETAIN):
        layer(torch.randn(5, 3)).sum().backward()
    assert not w.grad[3].any()
    assert w.grad[:3].all()


def test_computed_weights_deep_inside_learn_by_route():
    class Hyper(Projected):
        def forward(self, x):
            return super().forward(x) + 1

    module = Hyper()
    w = nn.Parameter(module.projection.weight.detach().clone())
    del module.projection.weight
    module.projection.weight = 2 * w
    with gr.Router(module, {"": gr.Site(SPEC, level="parameters")})(RETAIN):
        module(torch.randn(5, 3)).sum().backward()
    assert not w.grad[3].any()
    assert w.grad[:3].all()
