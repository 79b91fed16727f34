"""What switched-off units are worth on the way: a constant, to full precision, or nothing known."""

import pytest
import torch
from torch import nn

import gradroute as gr
from gradroute.errors import SiteError
from gradroute.surgery import contract
from gradroute.surgery.graph._constants import constants
from gradroute.surgery.graph._exported import Program
from surgery_cases import (
    ROWS,
    mlp,
    output,
    spec,
)


def test_constants_are_folded_in_double_precision():
    model = mlp(nn.Sigmoid()).double()
    router = gr.Router(model, {"0": spec(8)})
    with router.ablated("forget"):
        expected = output(model, ROWS.double())
    smaller = contract(router, "forget", example=ROWS.double()).model
    torch.testing.assert_close(output(smaller, ROWS.double()), expected, rtol=1e-14, atol=1e-14)


def test_dropout_that_is_on_in_evaluation_makes_no_constant():
    class Noisy(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Linear(5, 8), nn.Linear(8, 2)

        def forward(self, x):
            return self.last(nn.functional.dropout(self.first(x).sigmoid(), 0.5, training=True))

    with pytest.raises(SiteError, match="'last' reads the units, but not only by way of the site"):
        contract(gr.Router(Noisy(), {"first": spec(8)}), "forget", example=ROWS)


@pytest.mark.parametrize(
    ("layer", "shape", "dim", "value"),
    [
        (nn.Linear(3, 4), (2, 5, 3), 2, 0.5),
        (nn.Linear(3, 4, bias=False), (2, 3), 1, 0.0),
        (nn.Conv2d(3, 4, 2, padding=1), (2, 3, 5, 5), 1, 0.5),
        (nn.ConvTranspose1d(3, 4, 2, stride=2), (2, 3, 5), 1, 0.5),
        (nn.LayerNorm(4), (2, 4), 1, 0.5),
        (nn.RMSNorm(4), (2, 4), 1, 0.0),
        (nn.GroupNorm(2, 4), (2, 4, 5), 1, 0.5),
        (nn.BatchNorm1d(4).eval(), (2, 4, 5), 1, 0.5),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else None,
)
def test_of_a_unit_whose_weights_are_0_the_bias_is_left_and_of_no_other_anything_is_known(layer, shape, dim, value):
    with torch.no_grad():
        for name, parameter in layer.named_parameters():
            parameter.fill_(0.5 if name == "bias" else 1.0)
            if name == "weight":
                parameter.select(int(isinstance(layer, nn.ConvTranspose1d)), 2).zero_()
    x = torch.randn(shape)
    program = Program(nn.Sequential(layer), (x,), {}, ())
    node = next(node for node in reversed(program.graph.nodes) if node.op == "call_function")
    known = constants(program)[node, dim]
    assert known.isnan().tolist() == [True, True, False, True]
    assert known[2] == value
    assert bool((layer(x).select(dim, 2) == value).all())
