"""What switched-off units are worth on the way: a constant, to full precision, or nothing known."""

import pytest
import torch
from torch import nn

import gradroute as gr
from gradroute.errors import SiteError
from gradroute.surgery import contract
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
