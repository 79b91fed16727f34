"""A model routed by the textbook formulas does what a routed one does."""

import pytest
import torch

import gradroute as gr
from architectures import ARCHITECTURES
from gradroute.testing import assert_routed

pytestmark = pytest.mark.filterwarnings(r"ignore:`torch\.jit\.script(_method)?` is deprecated")


@pytest.mark.parametrize("name", ["mlp", "relu of mlp", "resnet18 conv", "lstm", "multi-head attention", "gpt2 mlp"])
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
