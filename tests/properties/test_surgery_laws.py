"""Laws of surgery, for any spec, either end of a site, and any label."""

import copy

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn

import gradroute as gr
from gradroute.errors import SiteError
from gradroute.surgery import ablate_, contract, contract_, expand_
from strategies import specs

ACTIVATIONS = [nn.ReLU(), nn.GELU(), nn.Tanh(), nn.Sigmoid(), nn.Softplus(), nn.SiLU(), nn.Identity()]
X = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
IMAGES = torch.randn(2, 4, 5, 5, generator=torch.Generator().manual_seed(0))


@st.composite
def routed(draw):
    """A small model, a router with a site of any spec on it, an input, and labels of which some units are theirs alone."""
    spec = draw(specs())
    n = spec.width
    activation = draw(st.sampled_from(ACTIVATIONS))
    torch.manual_seed(draw(st.integers(0, 5)))
    if draw(st.booleans()):
        model, dim, x = nn.Sequential(nn.Conv2d(4, n, 3), nn.BatchNorm2d(n), activation, nn.Conv2d(n, 2, 2)), 1, IMAGES
        nn.init.uniform_(model[1].running_mean)
        nn.init.uniform_(model[1].bias)
    else:
        model, dim, x = nn.Sequential(nn.Linear(4, n), nn.Dropout(0.5), activation, nn.Linear(n, 2)), -1, X
    name, on = draw(st.sampled_from([("0", "output"), ("1", "output"), ("2", "output"), ("3", "input")]))
    router = gr.Router(model.eval(), {name: gr.Site(spec, on=on, dim=dim)})
    labels = draw(st.lists(st.sampled_from(spec.labels), min_size=1, max_size=2, unique=True))
    assume(spec.exclusive(*labels))
    return model, router, labels, x, (name, on)


def output(model, x):
    with torch.no_grad():
        return model(x)


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


EXPORTED = settings(max_examples=25)  # each exports a model, a tenth of a second


@EXPORTED
@given(routed())
def test_an_ablation_for_good_is_the_ablated_model_and_nothing_else(case):
    model, router, labels, x, (name, _) = case
    own = int(name) != 2 and not (name == "1" and isinstance(model[1], nn.Dropout))
    before = copy.deepcopy(model.state_dict())
    with router.ablated(*labels):
        expected = output(model, x)
    ablate_(router, *labels, example=None if own else x)
    close(output(model, x), expected)
    off = list(router.sites[name][0].spec.exclusive(*labels))
    kept = [unit for unit in range(router.sites[name][0].spec.width) if unit not in off]
    after = model.state_dict()
    assert {key: value.shape for key, value in after.items()} == {key: value.shape for key, value in before.items()}
    for key in after:
        if key.startswith("3"):
            if "weight" in key:
                assert torch.equal(after[key][:, kept], before[key][:, kept])
        elif after[key].ndim:
            assert torch.equal(after[key][kept], before[key][kept])
    if own:  # and then no other layer changes
        assert all(torch.equal(after[key], before[key]) for key in after if not key.startswith(name))


@EXPORTED
@given(routed())
def test_contracting_is_the_ablated_model_without_the_units(case):
    model, router, labels, x, (name, _) = case
    spec = router.sites[name][0].spec
    off = spec.exclusive(*labels)
    with router.ablated(*labels):
        expected = output(model, x)
    if len(off) == spec.width:
        with pytest.raises(SiteError, match="would be gone"):
            contract(router, *labels, example=x)
        return
    smaller = contract(router, *labels, example=x).model
    close(output(smaller, x), expected)
    assert smaller[0].weight.shape[0] == smaller[3].weight.shape[1] == spec.width - len(off)
    ablate_(router, *labels, example=x)
    close(output(smaller, x), output(model, x))


@given(st.integers(1, 5), st.integers(1, 4), st.sampled_from(ACTIVATIONS), st.booleans())
def test_expanding_changes_no_output_and_contracting_undoes_it(width, extra, activation, norm):
    model = nn.Sequential(
        nn.Linear(4, width), nn.BatchNorm1d(width) if norm else activation, nn.Linear(width, 2)
    ).eval()
    expected, before = output(model, X), copy.deepcopy(model.state_dict())
    new = expand_(model[0], model[2], extra, between=[model[1]])
    assert list(range(width + extra))[new] == list(range(width, width + extra))
    close(output(model, X), expected)
    contract_(model[0], model[2], new, between=[model[1]])
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())


@given(st.integers(2, 6), st.data())
def test_contracting_by_hand_is_what_zero_columns_compute(width, data):
    gone = data.draw(st.lists(st.integers(0, width - 1), min_size=1, max_size=width - 1, unique=True))
    model = nn.Sequential(nn.Linear(4, width), nn.Sigmoid(), nn.Linear(width, 2))
    zeroed = copy.deepcopy(model)
    with torch.no_grad():
        zeroed[2].weight[:, gone] = 0
    contract_(model[0], model[2], gone, between=[model[1]])
    close(output(model, X), output(zeroed, X))
