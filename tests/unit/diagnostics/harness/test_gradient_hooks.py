"""The user's gradient hooks: they run where gradients are measured, and are where they were afterwards."""

import torch

import gradroute as gr
from gradroute import audit
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
