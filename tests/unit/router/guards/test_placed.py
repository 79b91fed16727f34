"""A module that came into a site's place after the router was attached is refused, or routed still."""

import pytest
import torch
from torch import nn

import gradroute as gr
from gradroute.errors import UsageError
from unit.router.small import LABELS, SPEC, mlp


@pytest.mark.parametrize("ran_before", [False, True])
def test_a_module_that_was_replaced_is_refused(ran_before):
    model = mlp()
    router = gr.Router(model, {"0": SPEC})
    if ran_before:
        with router(LABELS):
            model(torch.ones(2, 2))
    model[0] = nn.Linear(2, 3)
    with pytest.raises(UsageError, match="modules of the sites '0' are no longer in the model"):
        router(LABELS).__enter__()
    with pytest.raises(UsageError, match="no longer in the model"):
        router.ablated(0).__enter__()
    assert router.labels is None


def test_a_module_that_was_wrapped_is_routed_still():
    model = mlp()
    router = gr.Router(model, {"0": SPEC})
    model[0] = nn.Sequential(model[0])
    for _ in range(2):
        with router(LABELS):
            model(torch.ones(2, 2)).sum().backward()
        assert model[0][0].bias.grad[1] == 0


@pytest.mark.parametrize("trainable", [False, True])
def test_an_adapter_put_around_a_site_later_is_refused_if_it_learns(trainable):
    class Adapted(nn.Module):
        def __init__(self, base):
            super().__init__()
            self.base_layer = base
            self.adapter = nn.Linear(2, 3, bias=False).requires_grad_(trainable)

        def forward(self, x):
            return self.base_layer(x) + self.adapter(x)

    model = mlp()
    router = gr.Router(model, {"0": SPEC})
    model[0] = Adapted(model[0])
    for _ in range(2):
        if trainable:
            with pytest.raises(UsageError, match=r"'0' was wrapped in a Adapted .*\('adapter.weight'\)"):
                router(LABELS).__enter__()
        else:
            with router(LABELS):
                model(torch.ones(2, 2)).sum().backward()
