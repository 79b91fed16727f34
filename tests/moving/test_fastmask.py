"""docs/moving.md, "From fastmask": row by row."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import gradroute as gr
from gradroute.surgery import contract

from .comparing import assert_same
from .fastmask import EXPANDED, NEURONS, WIDTH, Rates, discrete_masking_mlp, expanded_mlp, mlp

RATES = st.sampled_from([-0.5, 0.0, 0.25, 1.0])
X = torch.randn(3, 5, WIDTH, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def spec(rates: Rates) -> gr.RoutingSpec:
    return gr.RoutingSpec(
        {
            "retain": gr.Route(slice(0, NEURONS), rates.original_dim_lr_retain, rates.expanded_dim_lr_retain),
            "forget": gr.Route(slice(NEURONS, None), rates.expanded_dim_lr_forget, rates.original_dim_lr_forget),
        },
        NEURONS + EXPANDED,
    )


def learned(model: nn.Module, x: Tensor, y: Tensor) -> dict[str, Tensor]:
    wanted = {**dict(model.named_parameters()), "upstream": x}
    return dict(zip(wanted, torch.autograd.grad(y.square().sum(), list(wanted.values())), strict=True))


@pytest.mark.parametrize("parameters", [True, False])
@settings(max_examples=15)
@given(rates=st.builds(Rates, RATES, RATES, RATES, RATES), whole=st.booleans())
def test_an_expanded_mlp_is_a_spec_of_its_four_rates(parameters: bool, rates: Rates, whole: bool) -> None:
    """By integer labels where all ids are 0 or 1, and as a mixture in any case."""
    model, x = mlp(), X.clone().requires_grad_()
    mask_ids = torch.randint(2, x.shape[:-1]).double() if whole else torch.rand(x.shape[:-1], dtype=torch.float64)
    theirs = learned(model, x, expanded_mlp(model, x, mask_ids, rates, parameters=parameters))
    level = "parameters" if parameters else "activations"
    router = gr.Router(model, {"0": gr.Site(spec(rates), level=level)})
    for labels in [torch.stack([mask_ids, 1 - mask_ids], -1)] + ([1 - mask_ids.long()] if whole else []):
        with router(labels):
            assert_same(theirs, learned(model, x, model(x)))


def test_its_default_rates_let_retain_teach_the_expanded_neurons_and_split_does_not() -> None:
    table = spec(Rates()).table
    split = gr.RoutingSpec.split({"retain": NEURONS, "forget": EXPANDED}).table
    assert table[0].all()
    assert torch.equal(table[1], split[1])
    assert not torch.equal(table[0], split[0])


def test_without_ids_all_is_forget_and_without_labels_a_pass_warns() -> None:
    model, x = mlp(), X.clone().requires_grad_()
    theirs = learned(model, x, expanded_mlp(model, x, None, Rates(), parameters=True))
    router = gr.Router(model, {"0": gr.Site(spec(Rates()), level="parameters")})
    with router(torch.ones(len(x), dtype=torch.long)):
        assert_same(theirs, learned(model, x, model(x)))
    with pytest.warns(gr.UnroutedWarning, match="no labels"):
        model(x)


def test_the_layer_that_reads_learns_from_every_token_unless_a_site_routes_it() -> None:
    model, x = mlp(), X.clone().requires_grad_()
    mask_ids = torch.ones(x.shape[:-1], dtype=torch.float64)  # all "retain"
    closed = Rates(expanded_dim_lr_retain=0.0)
    theirs = learned(model, x, expanded_mlp(model, x, mask_ids, closed, parameters=True))
    assert not theirs["0.weight"][NEURONS:].any()
    assert theirs["2.weight"][:, NEURONS:].all()
    writes = gr.Site(spec(closed), level="parameters")
    router = gr.Router(model, {"0": writes, "2": gr.Site(spec(closed), on="input", level="parameters")})
    with router(torch.zeros(len(x), dtype=torch.long)):
        ours = learned(model, x, model(x))
    assert not ours["2.weight"][:, NEURONS:].any()
    assert_same(theirs, ours, but=("2.weight",))


@settings(max_examples=15)
@given(st.data())
def test_a_discrete_masking_mlp_is_a_spec_behind_the_activation(data: st.DataObject) -> None:
    model, x = mlp(), X.clone().requires_grad_()
    units = st.lists(st.integers(0, NEURONS + EXPANDED - 1), unique=True)
    configs = [(data.draw(units), data.draw(RATES), data.draw(RATES)) for _ in range(3)]
    masks = torch.stack([torch.full((NEURONS + EXPANDED,), neg, dtype=torch.float64) for _, _, neg in configs])
    for row, (dimensions, pos, _) in zip(masks, configs, strict=True):
        row[dimensions] = pos
    mask_ids = torch.randint(3, x.shape[:-1])
    theirs = learned(model, x, discrete_masking_mlp(model, x, mask_ids, masks))
    routes = {i: gr.Route(dimensions, pos, neg) for i, (dimensions, pos, neg) in enumerate(configs)}
    router = gr.Router(model, {"1": gr.RoutingSpec(routes, NEURONS + EXPANDED)})
    with router(mask_ids):
        assert_same(theirs, learned(model, x, model(x)))


@torch.no_grad()
def test_ablated_and_contracted_it_is_what_ablated_and_contract_give() -> None:
    model = mlp()
    off = expanded_mlp(model, X, None, Rates(), parameters=True, ablate=True)
    router = gr.Router(model, {"0": gr.Site(spec(Rates()), level="parameters")})
    with router.ablated("forget"):
        torch.testing.assert_close(model(X), off, rtol=1e-12, atol=1e-12)
    smaller = contract(router, "forget", example=X).model
    torch.testing.assert_close(smaller(X), off, rtol=1e-12, atol=1e-12)
    # The original neurons, and what reads them.
    for ours, theirs in zip(
        smaller.parameters(),
        (model[0].weight[:NEURONS], model[0].bias[:NEURONS], model[2].weight[:, :NEURONS], model[2].bias),
        strict=True,
    ):
        assert torch.equal(ours, theirs)
