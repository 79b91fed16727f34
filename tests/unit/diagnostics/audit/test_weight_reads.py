"""Which weights read a site's units, by whatever function."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import gradroute as gr
from gradroute import audit
from planted import SPEC, WIDTH, N, labels
from unit.diagnostics.clean import found, net, step_of

pytestmark = pytest.mark.filterwarnings(r"ignore:`torch\.jit\.script(_method)?` is deprecated")


class Functional(nn.Module):
    def __init__(self, shape, function):
        super().__init__()
        self.writer = nn.Linear(5, WIDTH)
        self.w = nn.Parameter(torch.randn(shape))
        self.function = function

    def forward(self, x):
        return self.function(self.writer(x), self.w)


@pytest.mark.parametrize(
    ("shape", "function"),
    [
        ((3, WIDTH), lambda h, w: h @ w.T),
        ((WIDTH, 3), torch.matmul),
        ((WIDTH, 3), lambda h, w: torch.addmm(torch.zeros(3), h, w)),
        ((WIDTH,), lambda h, w: w * h),
        ((WIDTH,), F.prelu),
        ((6, WIDTH), lambda h, w: torch.rnn_tanh_cell(h, h.new_zeros(len(h), 6), w, torch.eye(6))),
        ((WIDTH, 3, 2), lambda h, w: F.conv_transpose1d(h[:, :, None], w)),
    ],
)
def test_readers_are_found_by_whatever_function_they_read(shape, function):
    model = Functional(shape, function)
    report = audit(gr.Router(model, {"writer": SPEC}), step_of(model), torch.randn(N, 5), labels())
    assert found(report) == {("w", "reader")}


@pytest.mark.parametrize("options", [{"bidirectional": True}, {"bias": False}, {"num_layers": 2}])
def test_the_first_layer_of_a_recurrent_network_reads_its_input(options):
    model = nn.Sequential(nn.Linear(5, WIDTH), nn.LSTM(WIDTH, 6, batch_first=True, **options))
    report = audit(gr.Router(model, {"0": SPEC}), lambda x: model(x)[0].square().mean(), torch.randn(N, 3, 5), labels())
    directions = ["", "_reverse"] if options.get("bidirectional") else [""]
    weights = {(f"1.weight_ih_l0{end}", "reader") for end in directions}
    biases = {(f"1.bias_ih_l0{end}", "shared bias") for end in directions}
    assert found(report) == weights | (biases if options.get("bias", True) else set())


def test_where_it_is_not_known_what_a_weight_reads_the_report_says_so():
    model = Functional((3, WIDTH), lambda h, w: torch.einsum("bi,oi->bo", h, w))
    report = audit(gr.Router(model, {"writer": SPEC}), step_of(model), torch.randn(N, 5), labels())
    assert "not known what these read, so no readers were looked for in them: 'w'" in str(report)
    model = net()
    nn.utils.parametrizations.weight_norm(model[2])
    report = audit(gr.Router(model, {"0": SPEC}), step_of(model), torch.randn(N, 5), labels())
    assert "computed from others here, so readers cannot be told: '2'" in str(report)


def test_a_weight_that_was_computed_from_a_parameter_is_said_to_be_unknown():
    mask = torch.ones(3, WIDTH)
    model = Functional((3, WIDTH), lambda h, w: F.linear(h, w * mask))
    report = audit(gr.Router(model, {"writer": SPEC}), step_of(model), torch.randn(N, 5), labels())
    assert any("not known what these read" in note and "'w'" in note for note in report.notes)
