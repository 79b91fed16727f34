"""Compiled code routes as eager code does, also inside `torch.func` transforms, where a plain Function would not."""

import pytest
import torch
from torch import func, nn

import gradroute as gr

SPEC = gr.RoutingSpec.one_per_label(3)


def loss(x, labels):
    return gr.route(x, labels, SPEC).square().sum()


def backward(function):
    def gradient(x, labels):
        x = x.clone().requires_grad_()
        function(x, labels).backward()
        return x.grad

    return gradient


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize(
    "compiled",
    [
        lambda compile: backward(compile(loss)),
        lambda compile: compile(func.grad(loss)),
        lambda compile: compile(func.vmap(func.grad(loss))),
        lambda compile: backward(lambda x, labels: compile(func.vmap(loss))(x, labels).sum()),
    ],
    ids=["compile", "compile of grad", "compile of vmap of grad", "compile of vmap"],
)
def test_functional_form(backend, compiled):
    gradient = compiled(lambda f: torch.compile(f, backend=backend, fullgraph=True))
    x = torch.randn(4, 3)
    for labels in (torch.tensor([2, 0, -1, 1]), torch.tensor([0, 0, 1, -1])):
        torch.testing.assert_close(gradient(x, labels), 2 * x * SPEC.mask(labels))


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_router_around_and_inside_compiled_code_without_recompiling(backend):
    model = nn.Sequential(nn.Linear(5, 3), nn.ReLU(inplace=True), nn.Linear(3, 1))
    routed = gr.RoutedModule(model, {"0": SPEC})
    x = torch.randn(4, 5)

    def gradients(run):
        model.zero_grad()
        run().square().sum().backward()
        return [parameter.grad.clone() for parameter in model.parameters()]

    def outside(compiled, labels):
        with routed.router(labels):
            return compiled(x)

    compiled_module = torch.compile(routed, backend=backend, fullgraph=True)
    compiled_model = torch.compile(model, backend=backend, fullgraph=True)
    graphs = []
    for labels in (torch.tensor([2, 0, -1, 1]), torch.tensor([0, 0, 1, -1]), torch.tensor([1, 1, 1, 1])):
        expected = gradients(lambda labels=labels: routed(x, route_labels=labels))
        torch.testing.assert_close(gradients(lambda labels=labels: compiled_module(x, route_labels=labels)), expected)
        torch.testing.assert_close(gradients(lambda labels=labels: outside(compiled_model, labels)), expected)
        graphs.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    assert graphs == [2, 2, 2]


@pytest.mark.parametrize("label", [3, -2])
def test_unknown_labels_fail_where_nothing_can_look_at_them(label):
    with pytest.raises((IndexError, RuntimeError), match="out of range"):
        backward(torch.compile(loss, backend="aot_eager", fullgraph=True))(torch.randn(2, 3), torch.tensor([0, label]))
