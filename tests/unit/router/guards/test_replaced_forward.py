"""At level "parameters" a forward method that would not be routed is refused."""

import pytest
import torch
from torch import nn

import gradroute as gr


@pytest.mark.parametrize("on", ["output", "input"])
def test_a_forward_that_is_replaced_later_is_refused_and_one_that_wraps_is_not(on: str) -> None:
    spec = gr.RoutingSpec.split({"retain": 2, "forget": 1})
    layer = nn.Linear(3, 3)
    router = gr.Router(layer, {"": gr.Site(spec, on=on, level="parameters")})
    standing = layer.forward
    layer.forward = lambda x: standing(1 * x)
    with router(torch.zeros(2, dtype=torch.int64)):
        layer(torch.ones(2, 3)).sum().backward()
    grad = layer.weight.grad if on == "output" else layer.weight.grad.T
    assert grad[:2].all()
    assert not grad[2].any()
    layer.forward = lambda x: nn.functional.linear(x, layer.weight)
    with (
        router(torch.zeros(2, dtype=torch.int64)),
        pytest.raises(gr.errors.UsageError, match="forward method.*replaced"),
    ):
        layer(torch.ones(2, 3))
