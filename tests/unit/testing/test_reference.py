"""A model routed by the textbook formulas does what a routed one does."""

import pytest
import torch

import gradroute as gr
from architectures import ARCHITECTURES
from gradroute.testing import assert_routed

pytestmark = pytest.mark.filterwarnings(r"ignore:`torch\.jit\.script(_method)?` is deprecated")


@pytest.mark.parametrize("name", ["mlp", "relu of mlp", "resnet conv", "lstm", "multi-head attention", "gpt2 mlp"])
@pytest.mark.parametrize("level", ["activations", "parameters"])
def test_architectures(name, level):
    architecture = ARCHITECTURES[name]
    if name == "relu of mlp" and level == "parameters":
        pytest.skip("a ReLU has no parameters")
    spec = gr.RoutingSpec.split({"a": architecture.width // 2, "b": architecture.width // 2})
    site = gr.Site(spec, dim=architecture.dim, index=architecture.index, level=level)
    model = architecture.build()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    assert_routed(
        model, {architecture.pattern: site}, architecture.inputs(), loss=architecture.loss, rtol=1e-3, atol=1e-3
    )
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


class Several(torch.nn.Module):
    """Its outputs are made of shared parameters."""

    def __init__(self):
        super().__init__()
        self.first, self.second = torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)

    def forward(self, x):
        hidden = self.first(x)
        return {"both": (hidden.tanh(), self.second(hidden)), "hidden": hidden, "given": x}


@pytest.mark.parametrize("level", ["activations", "parameters"])
@pytest.mark.parametrize("silent", [None, {"a": "b"}])
@pytest.mark.parametrize("paths", [["hidden"], [("both", 0)], [("both", 1), "hidden"]], ids=str)
def test_outputs_beside_the_sites_teach_whole(level, silent, paths):
    spec = gr.RoutingSpec.split({"a": 2, "b": 2}, silent=silent)
    sites = {"1": [gr.Site(spec, index=path, level=level) for path in paths]}
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), Several())
    model.append(Products())
    assert_routed(model, sites, torch.randn(5, 3), torch.tensor([0, 1, 1, -1, 0]))


class Products(torch.nn.Module):
    def forward(self, found):
        return found["both"][0] * found["both"][1] + found["hidden"] * found["given"]
