"""An audit changes nothing of model, router, gradients and random numbers."""

import copy
import random
import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import gradroute as gr
from gradroute import audit
from gradroute.router._attachment import attachment_of
from planted import READS, SPEC, WIDTH, N, labels
from unit.diagnostics.clean import net, step_of

pytestmark = pytest.mark.filterwarnings(r"ignore:`torch\.jit\.script(_method)?` is deprecated")


class Noisy(nn.Module):
    """All that a forward pass may change."""

    def __init__(self):
        super().__init__()
        self.writer = nn.Linear(5, WIDTH)
        self.norm = nn.BatchNorm1d(WIDTH)
        self.reader = nn.Linear(WIDTH, 3)
        self.register_buffer("calls", torch.zeros(()))
        self.generator = torch.Generator().manual_seed(3)
        self.cached = self._private = None

    def forward(self, x):
        self.calls = self.calls + 1
        h = F.dropout(self.norm(self.writer(x)), 0.5)
        h = h + random.random() + np.random.rand() + torch.randn(h.shape, generator=self.generator)
        self.cached = self._private = h
        self.new = h
        return self.reader(h)


def assert_it_still_warns_and_routes(model, router, x):
    with pytest.warns(gr.UnroutedWarning):
        model(x)
    model.zero_grad()
    with router(torch.zeros(N, dtype=torch.int64)):
        model.norm.eval()(model.writer(x)).sum().backward()
    assert not model.writer.weight.grad[2:].any()


@pytest.mark.parametrize("fails", [False, True])
def test_nothing_is_changed_whether_the_step_fails_or_not(fails):
    model = Noisy()
    model.norm.eval()
    hooks = []
    model.writer.register_forward_hook(lambda *_: hooks.append(1))
    router = gr.Router(model, {"writer": SPEC})
    recording = attachment_of(router).record_taught()
    record = recording.__enter__()
    x = torch.randn(N, 5)
    with router(labels()):
        model(x).sum().backward()
    del model.new
    model.cached = model._private = None
    before = copy.deepcopy(model.state_dict())
    gradients = {name: (p.grad, p.grad.clone()) for name, p in model.named_parameters()}
    states = (random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state(), model.generator.get_state())
    modes = [module.training for module in model.modules()]
    n_hooks = [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()]
    taught = [units.clone() for units in record.units]
    buffers = dict(model.named_buffers())

    def step(x):
        model.norm.train()
        model.zero_grad()
        loss = model(x).square().mean()
        if fails and len(hooks) > 6:
            raise RuntimeError("in the middle")
        return loss

    if fails:
        with pytest.raises(RuntimeError, match="in the middle"):
            audit(router, step, x, labels())
    else:
        audit(router, step, x, labels())
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert all(dict(model.named_buffers())[name] is buffer for name, buffer in buffers.items())
    for name, parameter in model.named_parameters():
        assert parameter.grad is gradients[name][0]
        assert torch.equal(parameter.grad, gradients[name][1])
    assert random.getstate() == states[0]
    assert (np.random.get_state()[1] == states[1]).all()
    assert torch.equal(torch.get_rng_state(), states[2])
    assert torch.equal(model.generator.get_state(), states[3])
    assert [module.training for module in model.modules()] == modes
    assert [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()] == n_hooks
    assert model.cached is None
    assert model._private is None
    assert not hasattr(model, "new")
    assert router.labels is None
    assert not attachment_of(router).state.suspended
    assert attachment_of(router).state.records == [record]
    assert all(torch.equal(a, b) for a, b in zip(record.units, taught, strict=True))
    assert_it_still_warns_and_routes(model, router, x)


def test_an_audit_inside_a_block_leaves_the_block_as_it_was():
    model = net()
    router = gr.Router(model, {"0": SPEC})
    x = torch.randn(N, 5)
    with router(torch.zeros(N, dtype=torch.int64)):
        audit(router, step_of(model), x, labels())
        model(x).square().sum().backward()
    assert model[0].weight.grad[:2].any()
    assert not model[0].weight.grad[2:].any()


def test_no_warning_leaves_an_audit():
    model = net()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        audit(gr.Router(model, {"0": SPEC}), step_of(model), torch.randn(N, 5), labels())


def test_what_another_router_warns_of_is_heard():
    """It warns once; were that lost in an audit of the one, nobody would hear of the other."""
    model = net()
    gr.Router(model, {"2": READS})
    with pytest.warns(gr.UnroutedWarning):
        audit(gr.Router(model, {"0": SPEC}), step_of(model), torch.randn(N, 5), labels())
