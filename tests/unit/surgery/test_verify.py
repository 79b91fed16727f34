"""The changed model's outputs are compared with the ablated one's, as finely as they are computed."""

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


def test_half_precision_is_compared_as_finely_as_it_computes():
    model = nn.Sequential(nn.Linear(5, 8), nn.Sigmoid(), nn.Linear(8, 2)).bfloat16()
    router = gr.Router(model, {"0": spec(8)})
    with router.ablated("forget"):
        expected = output(model, ROWS.bfloat16())
    smaller = contract(router, "forget", example=ROWS.bfloat16()).model
    torch.testing.assert_close(output(smaller, ROWS.bfloat16()), expected, rtol=0.02, atol=0.02)
    assert smaller[0].weight.dtype == torch.bfloat16


def test_a_result_that_is_not_that_of_the_ablated_model_is_refused():
    model = mlp()
    model[0].register_forward_hook(lambda module, args, out: out + 1 if module.out_features < 8 else None)
    with pytest.raises(SiteError, match="would not compute what the ablated one does"):
        contract(gr.Router(model, {"2": spec(8)}), "forget", example=ROWS)


def test_small_outputs_are_compared_as_finely_as_large_ones():
    class Small(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = mlp()

        def forward(self, x):
            return self.inner(x) * (1e-6 if self.inner[0].out_features == 8 else 2e-6)

    with pytest.raises(SiteError, match="would not compute what the ablated one does"):
        contract(gr.Router(Small(), {"inner.2": spec(8)}), "forget", example=ROWS)


def test_outputs_of_minus_infinity_make_no_comparison_lenient():
    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = mlp()

        def forward(self, x):
            out = self.inner(x) + (self.inner[0].out_features < 8)
            return torch.where(torch.tensor([True, False]), out, -torch.inf)

    with pytest.raises(SiteError, match="would not compute what the ablated one does"):
        contract(gr.Router(Masked(), {"inner.2": spec(8)}), "forget", example=ROWS)
