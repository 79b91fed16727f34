"""The user's gradient hooks: they run where gradients are measured, and are where they were afterwards."""

import pytest
import torch
from torch import nn

import gradroute as gr
from gradroute import audit
from gradroute.diagnostics.harness._gradient_hooks import GradientHooks
from planted import N, labels
from unit.diagnostics.clean import SITES, net, step_of


def test_hooks_that_change_no_gradient_off_its_route_are_no_bypass_and_stay():
    model = net()
    calls = []
    handles = [
        model[0].weight.register_hook(lambda gradient: calls.append("tensor") or gradient * 2),
        model[2].register_full_backward_pre_hook(lambda module, gradients: calls.append("module")),
    ]
    router = gr.Router(model, SITES)
    assert audit(router, step_of(model), torch.randn(N, 5), labels()).clean
    router.remove()
    calls.clear()
    model(torch.randn(N, 5)).sum().backward()
    assert sorted(calls) == ["module", "tensor"]
    for handle in handles:
        handle.remove()
    model(torch.randn(N, 5)).sum().backward()
    assert sorted(calls) == ["module", "tensor"]


def test_hooks_after_accumulation_are_not_run_and_said_not_to_be():
    model = net()
    ran = []
    model[0].weight.register_post_accumulate_grad_hook(ran.append)
    report = audit(gr.Router(model, SITES), step_of(model), torch.randn(N, 5), labels())
    assert ran == []
    assert any("'0.weight'" in note and "accumulated" in note for note in report.notes)


def test_those_by_which_a_router_looks_for_bypasses_are_not_the_users():
    model = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])
    router = gr.Router(model, {"*": gr.RoutingSpec.one_per_label(2)})
    x, of_batch = torch.ones(2, 2), torch.tensor([0, 1])
    for chosen in (model, model[:1]):
        with router(of_batch):
            sum(layer(x) for layer in chosen).sum().backward()
    with GradientHooks(model, leave_out=True) as hooks, router(of_batch):
        model[0](x).sum().backward()
    assert not hooks.found
    with pytest.warns(gr.UnroutedWarning, match="got gradients"), router(of_batch):  # it is looking still
        nn.functional.linear(x, model[1].weight).sum().backward()
        model.zero_grad()
    handle = model[1].weight.register_hook(lambda gradient: gradient)
    with GradientHooks(model, leave_out=False) as hooks:
        pass
    assert hooks.found
    handle.remove()
