"""Parametrized, normalised and pruned weights: what is behind the weight gets the routed gradient."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

from composition.forms import Net, Routed, assert_same, batch


class Doubled(nn.Module):
    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return 2 * weight


def register_doubled(module: nn.Module) -> None:
    parametrize.register_parametrization(module, "weight", Doubled())


def prune_some(module: nn.Module) -> None:
    prune.l1_unstructured(module, "weight", amount=0.3)


WAYS = {
    "`parametrize.register_parametrization`": register_doubled,
    "`parametrizations.weight_norm`": parametrizations.weight_norm,
    "`parametrizations.spectral_norm`": parametrizations.spectral_norm,
    "`parametrizations.orthogonal`": parametrizations.orthogonal,
    "`nn.utils.prune`": prune_some,
}
CASES = [pytest.param(way, id=name, marks=pytest.mark.supports(name)) for name, way in WAYS.items()]


def train(form: str, way, *, first: bool) -> dict[str, torch.Tensor | None]:
    """The gradients of one step; parametrized before routing is attached (`first`) or after."""

    def make(route, spec) -> Net:
        net = Net(route, spec)
        if first:
            torch.manual_seed(1)
            way(net.encoder)
        return net

    routed = Routed(form, make)
    if not first:
        torch.manual_seed(1)
        way(routed.net.encoder)
    x, labels = batch()
    return routed.learn(routed(x, labels).square().sum())


@pytest.mark.parametrize("first", [True, False], ids=["before", "after"])
@pytest.mark.parametrize("way", CASES)
def test_what_is_behind_the_weight_learns_by_route(form: str, way, first: bool) -> None:
    assert_same(train(form, way, first=first), train("oracle", way, first=first))


def test_routing_outlives_the_removal_of_a_parametrization(routed: Routed) -> None:
    x, labels = batch()
    oracle = Routed("oracle")
    for model in (routed, oracle):
        register_doubled(model.net.encoder)
        parametrize.remove_parametrizations(model.net.encoder, "weight")
        expected = model.learn(model(x, labels).square().sum())
    assert_same(routed.gradients(), expected)
