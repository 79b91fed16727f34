"""What writes units, each use of a parameter by itself: recurrent networks, and weights that two inputs share."""

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import gradroute as gr
from gradroute import audit
from planted import ALTERNATING, SPEC, WIDTH, N, States, labels
from unit.diagnostics.clean import found, step_of


@pytest.mark.parametrize("cell", [nn.GRUCell, nn.LSTMCell, nn.RNNCell])
def test_a_loop_over_a_cell_with_a_site_on_each_state_is_clean(cell):
    class Loop(nn.Module):
        def __init__(self):
            super().__init__()
            self.cell = cell(5, WIDTH)

        def forward(self, x):
            state, found = None, []
            for step in x.unbind(1):
                state = self.cell(step, state)
                found.append(state[0] if isinstance(state, tuple) else state)
            return torch.stack(found, 1)

    def audit_of(sites):
        model = Loop()
        return audit(gr.Router(model, sites), step_of(model), torch.randn(N, 3, 5), labels())

    assert {kind for _, kind in found(audit_of({"": SPEC}))} == {"recurrence"}
    # Both states of an LSTM go from step to step.
    both = {"cell": gr.Site(SPEC, index=0), "cel[l]": gr.Site(SPEC, index=1)}
    assert audit_of(both if cell is nn.LSTMCell else {"cell": SPEC}).clean


def test_units_in_directions_that_never_meet_do_not_teach_each_other():
    model = States(nn.GRU, bidirectional=True)
    one_direction_each = SPEC  # of label 0 the units that read forwards, of label 1 those that read backwards
    report = audit(gr.Router(model, {"": one_direction_each}), step_of(model), torch.randn(N, 3, 5), labels())
    assert report.clean
    alternating = audit(gr.Router(model, {"": ALTERNATING}), step_of(model), torch.randn(N, 3, 5), labels())
    assert not alternating.clean
    single = audit(gr.Router(model, {"": ALTERNATING}), step_of(model), torch.randn(N, 1, 5), labels())
    assert single.clean, "with one step nothing goes from step to step"


def test_an_encoder_that_makes_the_units_of_two_labels_from_two_inputs_is_shared():
    class Siamese(nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder, self.latent = nn.Linear(5, WIDTH // 2), nn.Identity()

        def forward(self, x):
            return self.latent(torch.cat([self.encoder(x), self.encoder(x.flip(1))], 1))

    model = Siamese()
    assert audit(gr.Router(model, {"latent": SPEC}), step_of(model), torch.randn(N, 5), labels()).clean


def test_a_recurrent_network_under_a_checkpoint_is_looked_into():
    model = States(nn.GRU)

    def step(x):
        return checkpoint(model, x, use_reentrant=False).square().mean()

    report = audit(gr.Router(model, {"": SPEC}), step, torch.randn(N, 3, 5), labels())
    assert {kind for _, kind in found(report)} == {"recurrence"}
