"""A model as an exported program, or the reason why it cannot be one."""

import pytest
from torch import nn

import gradroute as gr
from gradroute.errors import SiteError
from gradroute.surgery import contract
from surgery_cases import (
    ROWS,
    mlp,
    spec,
)


class Branching(nn.Module):
    """A model whose path depends on its input."""

    def __init__(self):
        super().__init__()
        self.first, self.act, self.last = nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 2)

    def forward(self, x):
        return self.last(self.act(self.first(x if x.sum() > 0 else -x)))


def test_a_model_that_cannot_be_exported_is_refused():
    with pytest.raises(
        SiteError, match="Branching cannot be exported by torch.export on this example.*ablate_ then needs no export"
    ):
        contract(gr.Router(Branching(), {"act": spec(8)}), "forget", example=ROWS)


def test_a_site_that_the_example_does_not_reach_is_refused():
    model = nn.Sequential(mlp(), mlp())
    model.forward = model[0].forward
    with pytest.raises(SiteError, match=r"sites '1\.2' did not run on this example"):
        contract(gr.Router(model, {"1.2": spec(8)}), "forget", example=ROWS)
