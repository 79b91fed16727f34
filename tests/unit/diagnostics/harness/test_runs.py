"""A step is run again and again, for the examples of one label at a time."""

import pytest
import torch
from torch.utils.checkpoint import checkpoint

import gradroute as gr
from gradroute import audit
from gradroute.errors import UsageError
from planted import SPEC, N, labels
from unit.diagnostics.clean import found, net

pytestmark = pytest.mark.filterwarnings(r"ignore:`torch\.jit\.script(_method)?` is deprecated")


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpoints(reentrant):
    model = net()

    def step(x):
        hidden = checkpoint(model[0], x.requires_grad_(), use_reentrant=reentrant)
        return model[1:](hidden).square().mean()

    router = gr.Router(model, {"0": SPEC})
    if reentrant:
        with pytest.raises(UsageError, match="use_reentrant=False"):
            audit(router, step, torch.randn(N, 5), labels())
    else:
        assert found(audit(router, step, torch.randn(N, 5), labels())) == {("2.weight", "reader")}


def test_a_step_that_cannot_be_repeated_is_said_to_be_so():
    model = net()
    counter = iter(range(1000))
    report = audit(
        gr.Router(model, {"0": SPEC}), lambda x: model(x + next(counter)).square().mean(), torch.randn(N, 5), labels()
    )
    assert any("differ" in note for note in report.notes)
