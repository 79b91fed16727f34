"""Activations are made smooth while owners are looked for."""

import pytest
import torch
from torch import nn

import gradroute as gr
from gradroute import audit
from planted import READS, SPEC, WIDTH, N, labels

pytestmark = pytest.mark.filterwarnings(r"ignore:`torch\.jit\.script(_method)?` is deprecated")


@pytest.mark.parametrize("kink", [nn.ReLU(), nn.ReLU(inplace=True), nn.Hardtanh(0, 9), nn.ReLU6()], ids=repr)
def test_units_that_are_off_in_all_examples_do_not_make_others_owners_of_the_trunk(kink):
    writer = nn.Linear(4, WIDTH)
    with torch.no_grad():
        writer.bias.copy_(torch.tensor([-100.0, -100.0, 1.0, 1.0]))  # no example has a unit of label 0 on
    model = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), writer, kink, nn.Identity(), nn.Linear(WIDTH, 3, bias=False))

    def step(x):
        hidden = model[:2](x)
        return model[2:](hidden).square().mean() + hidden.square().mean()

    assert audit(gr.Router(model, {"4": SPEC, "5": READS}), step, torch.randn(N, 5), labels()).clean
