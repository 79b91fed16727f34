"""Each use of a parameter gets a gradient of its own, and their sum is the parameter's."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from gradroute.diagnostics.audit._weight_uses import WeightUses


def uses_and_whole(module, run):
    parameters = dict(module.named_parameters())
    with WeightUses(parameters) as uses:
        loss = run().square().sum()
    edges = {name: list(found) for name, found in uses.edges.items()}
    flat = [edge for found in edges.values() for edge in found]
    gradients = iter(torch.autograd.grad(loss, flat, retain_graph=True, allow_unused=True))
    by_use = {name: [next(gradients) for _ in found] for name, found in edges.items()}
    whole = dict(zip(parameters, torch.autograd.grad(run().square().sum(), list(parameters.values())), strict=True))
    return by_use, whole


CELLS = {
    "a layer that is used twice": (nn.Linear(3, 3), lambda m, x: m(m(x).tanh()), 2),
    "a functional use beside the module's": (nn.Linear(3, 3), lambda m, x: m(x) + F.linear(x, m.weight, m.bias), 2),
    "a loop over a cell": (nn.RNNCell(3, 3), lambda m, x: m(x, m(x, m(x))), 3),
    "a transposed use": (nn.Linear(3, 3), lambda m, x: x @ m.weight.T + m.bias, 1),
}


@pytest.mark.parametrize(("module", "forward", "times"), CELLS.values(), ids=CELLS)
def test_the_gradients_of_the_uses_sum_to_the_parameters(module, forward, times):
    torch.manual_seed(0)
    x = torch.randn(4, 3)
    by_use, whole = uses_and_whole(module, lambda: forward(module, x))
    for name, gradient in whole.items():
        assert len(by_use[name]) == times, name
        torch.testing.assert_close(sum(part for part in by_use[name] if part is not None), gradient)


@pytest.mark.parametrize("kind", [nn.RNN, nn.GRU, nn.LSTM])
def test_a_recurrent_layer_uses_its_weights_at_every_step(kind):
    torch.manual_seed(0)
    module, x = kind(3, 2), torch.randn(5, 4, 3)
    by_use, whole = uses_and_whole(module, lambda: module(x)[0])
    for name, gradient in whole.items():
        assert len(by_use[name]) > 1, name
        torch.testing.assert_close(sum(part for part in by_use[name] if part is not None), gradient)


def test_what_uses_no_values_is_no_use():
    module = nn.Linear(3, 3)
    with WeightUses(dict(module.named_parameters())) as uses:
        _ = module.weight.shape, module.weight.detach(), module.bias.requires_grad
        with torch.no_grad():
            module(torch.randn(2, 3))
    assert uses.edges == {}
