"""Where a module must run twice, the two runs are alike, or it is refused."""

import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import gradroute as gr
from gradroute.errors import UsageError
from gradroute.router._second_run import Beginning, chance_of_dropping, draws_random_numbers, refuse_memory

SPEC = gr.RoutingSpec.one_per_label(3)
LABELS = torch.tensor([0, 1])


class Drops(nn.Module):
    """Dropout that is no module."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 3)

    def forward(self, x):
        return F.dropout(self.layer(x), 0.5, training=self.training)


class DrawsSomewhereElse(Drops):
    """Its own code names nothing that draws."""

    def forward(self, x):
        return _noisy(self.layer(x))


def _noisy(y):
    return y + torch.randn_like(y)


def attention():
    return nn.MultiheadAttention(3, 1, dropout=0.5, batch_first=True)


def routed_gradient(module, call):
    """Of a sum of outputs, under `torch.func`."""
    site = gr.Site(SPEC, level="parameters", index=0 if isinstance(module, nn.MultiheadAttention) else None)
    router = gr.Router(module, {"": site})
    parameters = dict(module.named_parameters())

    def loss(parameters):
        output = torch.func.functional_call(module, parameters, call)
        return (output[0] if isinstance(output, tuple) else output).sum()

    with router(LABELS):
        return torch.func.grad(loss)(parameters)


@pytest.mark.parametrize("kind", [Drops, DrawsSomewhereElse, attention], ids=["code", "hidden", "attention"])
def test_random_numbers_under_a_transform_are_refused(kind):
    module = kind()
    x = torch.randn(2, 4, 3) if kind is attention else torch.randn(2, 3)
    with pytest.raises(UsageError, match="draws random numbers"):
        routed_gradient(module, (x, x, x) if kind is attention else (x,))


def test_random_numbers_are_found_in_code_and_settings():
    assert draws_random_numbers(Drops())
    assert draws_random_numbers(nn.Sequential(nn.Linear(3, 3), Drops()))
    assert not draws_random_numbers(nn.Sequential(nn.Linear(3, 3), nn.Tanh()))
    assert chance_of_dropping(attention())
    assert not chance_of_dropping(attention().eval())
    assert not chance_of_dropping(nn.Dropout(0.0))


def test_a_compiled_module_that_drops_is_refused_or_runs_once_uncompiled():
    module = Drops()
    router = gr.Router(module, {"": gr.Site(SPEC, level="parameters")})
    torch._dynamo.reset()
    x = torch.randn(2, 3)
    with router(LABELS), pytest.raises(Exception, match="draws random numbers"):
        torch.compile(module, backend="eager", fullgraph=True)(x)
    torch._dynamo.reset()
    with router(torch.tensor([0, 0])):
        y = torch.compile(module, backend="eager")(x)
        y.sum().backward()
    assert not module.layer.bias.grad[1:].any()
    assert torch.equal(module.layer.bias.grad[0], 2.0 * (y[:, 0] != 0).sum())


class Cache:
    def __init__(self):
        self.items = []


class Remembers(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 3)

    def forward(self, x, cache=None):
        if cache is not None:
            cache.items.append(x)
        return self.layer(x).tanh()


def test_an_argument_with_a_memory_is_refused_where_two_runs_are_needed():
    module, cache = Remembers(), Cache()
    router = gr.Router(module, {"": gr.Site(SPEC, on="input", level="parameters")})
    with router(LABELS), pytest.raises(UsageError, match="called with a Cache, which may remember"):
        module(torch.randn(2, 3), cache)
    assert cache.items == []
    with router(LABELS):
        module(torch.randn(2, 3)).sum().backward()


def test_plain_arguments_have_no_memory():
    module = Remembers()
    refuse_memory(module, ((torch.ones(1), [1, (2.0, None)], {"a": "b", "c": torch.float32}, slice(3)), {"f": print}))


def test_the_second_run_starts_where_the_first_did_and_leaves_what_the_first_left():
    module = nn.BatchNorm1d(3)
    module.calls = 0

    def draw():
        module.calls += 1
        return random.random(), float(np.random.rand()), float(torch.rand(()))

    beginning = Beginning(module)
    first = draw()
    with beginning.once_more():
        assert module.calls == 0
        assert draw() == first
    assert module.calls == 1
    after = draw()
    beginning = Beginning(module)
    assert draw() != after
    assert set(beginning.buffers()) == set(dict(module.named_buffers()))
