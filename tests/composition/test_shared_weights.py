"""One weight in two places: each place routes its own share of the gradient, and the shares add up."""

import pytest
import torch
from torch import nn

import gradroute as gr
from composition.forms import SPEC, WIDTH, Routed, assert_same, batch
from gradroute.testing import oracle_mask

OTHER = gr.RoutingSpec({"retain": slice(2, 6), "forget": slice(0, 2)}, WIDTH)
SITES = {"encoder": gr.Site(SPEC), "second": gr.Site(OTHER)}


class Tied(nn.Module):
    """Two modules with one weight, each routed by its own spec."""

    def __init__(self, route, spec: gr.RoutingSpec) -> None:
        super().__init__()
        self.encoder = nn.Linear(WIDTH, WIDTH)
        self.second = nn.Linear(WIDTH, WIDTH)
        self.second.weight = self.encoder.weight
        self.route = route

    def forward(self, x: torch.Tensor, labels: torch.Tensor | None = None) -> torch.Tensor:
        z = self.encoder(x)
        if labels is not None:
            z = self.route(z, labels, SPEC)
        z = self.second(torch.tanh(z))
        return z if labels is None else self.route(z, labels, OTHER)


class Twice(Tied):
    """One module run twice in a forward pass, the second time on its own output."""

    def forward(self, x: torch.Tensor, labels: torch.Tensor | None = None) -> torch.Tensor:
        for _ in range(2):
            x = self.encoder(x)
            x = torch.tanh(x if labels is None else self.route(x, labels, SPEC))
        return x


def gradients(form: str, make, sites) -> dict[str, torch.Tensor | None]:
    _, labels = batch()
    x = torch.randn(8, WIDTH, generator=torch.Generator().manual_seed(0))
    routed = Routed(form, make, sites=sites)
    return routed.learn(routed(x, labels).square().sum())


@pytest.mark.supports("a weight shared by two routed modules")
def test_a_weight_of_two_routed_modules_gets_the_sum_of_both_shares(form: str) -> None:
    assert_same(gradients(form, Tied, SITES), gradients("oracle", Tied, SITES))


@pytest.mark.supports("a routed module that runs twice in one forward pass")
def test_a_module_that_runs_twice_is_routed_twice(form: str) -> None:
    sites = {"encoder": gr.Site(SPEC)}
    assert_same(gradients(form, Twice, sites), gradients("oracle", Twice, sites))


@pytest.mark.supports("one module under two names", forms=["router"])
def test_a_module_under_two_names_is_routed_once() -> None:
    _, labels = batch()
    x = torch.randn(8, WIDTH)
    layer = nn.Linear(WIDTH, WIDTH)
    soft = gr.RoutingSpec({"retain": gr.Route(0, weight=0.5, elsewhere=0.5), "forget": 1}, WIDTH)
    model = nn.ModuleDict({"first": layer, "again": layer})
    router = gr.Router(model, {"*": soft})
    with router(labels):
        z = layer(x)
    z.sum().backward()
    assert_same({"bias": layer.bias.grad}, {"bias": oracle_mask(soft, labels).sum(0)})
