"""Which entries belong to a site's units: what others write or read too belongs to nobody."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import gradroute as gr
from gradroute import audit
from planted import READS, SPEC, WIDTH, N, labels
from unit.diagnostics.clean import step_of

pytestmark = pytest.mark.filterwarnings(r"ignore:`torch\.jit\.script(_method)?` is deprecated")


def test_a_residual_stream_around_a_site_is_shared_and_no_bypass():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.up, self.down = nn.LayerNorm(6), nn.Linear(6, WIDTH), nn.Linear(WIDTH, 6, bias=False)

        def forward(self, x):
            return x + self.down(F.gelu(self.up(self.norm(x))))

    model = nn.Sequential(nn.Linear(5, 6), Block(), Block(), nn.Linear(6, 2))
    sites = {"[12].up": SPEC, "[12].down": READS}
    assert audit(gr.Router(model, sites), step_of(model), torch.randn(N, 5), labels()).clean
    # A site on what a block adds: its readers read the whole stream, which is nobody's.
    model = nn.Sequential(nn.Linear(5, 6), Block(), nn.LayerNorm(6), nn.Linear(6, 2))
    spec = gr.RoutingSpec({0: [0, 1, 2], 1: [3, 4, 5]}, 6)
    assert audit(gr.Router(model, {"1.down": spec}), step_of(model), torch.randn(N, 5), labels()).clean


def test_a_weight_that_reads_something_else_too_belongs_to_nobody():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.writer, self.other, self.reader = nn.Linear(5, WIDTH), nn.Linear(5, WIDTH), nn.Linear(WIDTH, 3)

        def forward(self, x):
            return self.reader(torch.tanh(self.writer(x))) + self.reader(torch.tanh(self.other(x)))

    model = Twice()
    assert audit(gr.Router(model, {"writer": SPEC}), step_of(model), torch.randn(N, 5), labels()).clean
