"""What the experiments of an audit share."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import gradroute as gr
from gradroute.diagnostics.audit._experiments import against_others, held_alone, noise
from gradroute.router._attachment import attachment_of


@given(st.lists(st.booleans(), min_size=2, max_size=12))
def test_units_are_compared_with_those_that_are_not_among_them(units):
    units = torch.tensor(units)
    pairs = list(against_others(units))
    for mine, others in pairs:
        assert not (mine & others).any()
        assert (mine | others).all()
    compared = torch.stack([mine for mine, _ in pairs]).any(0)
    assert torch.equal(compared, units), "each unit that is asked about, and no other"


@pytest.mark.parametrize("shape", [(), (3,), (4, 5)])
def test_noise_is_far_from_zero_the_same_for_a_seed_and_leaves_torchs_generator_alone(shape):
    x = torch.zeros(shape, dtype=torch.float64)
    before = torch.get_rng_state()
    found = noise(x, 0)
    assert torch.equal(torch.get_rng_state(), before)
    assert found.shape == x.shape
    assert found.dtype == x.dtype
    assert ((found.abs() >= 0.5) & (found.abs() <= 1.5)).all()
    assert torch.equal(noise(x, 0), found)
    assert not torch.equal(noise(torch.zeros(20), 1), noise(torch.zeros(20), 2))


@pytest.mark.parametrize("names", [None, ("0.bias",)])
@pytest.mark.parametrize("shared", ["nothing", "a parameter", "a module"])
def test_what_a_module_shares_with_the_rest_of_the_model_is_not_held_by_it_alone(names, shared):
    expert = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model = nn.ModuleDict({"expert": expert, "rest": nn.Linear(3, 3)})
    if shared == "a parameter":
        model["rest"].bias = expert[0].bias
    elif shared == "a module":
        model["rest"] = expert[0]
    router = gr.Router(model, {"expert": gr.Site(gr.RoutingSpec({0: 0}, 1), level="parameters", parameters=names)})
    [site] = attachment_of(router).sites
    routed = {"0.bias"} if names else {"0.weight", "0.bias", "1.weight", "1.bias"}
    elsewhere = {"nothing": set(), "a parameter": {"0.bias"}, "a module": {"0.weight", "0.bias"}}[shared]
    expected = {expert.get_parameter(name) for name in routed - elsewhere}
    assert held_alone(site, model) == expected
    assert held_alone(site, expert) == {expert.get_parameter(name) for name in routed}, "the site's module is all"
