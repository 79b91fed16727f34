"""What a label trains off its route is found and called by its name, and nothing else is."""

import pytest
import torch
from torch import nn

import gradroute as gr
from gradroute import audit
from planted import PLANTED, READS, SPEC, WIDTH, N, OriginalVAE, labels
from unit.diagnostics.clean import SITES, found, net, step_of

pytestmark = pytest.mark.filterwarnings(r"ignore:`torch\.jit\.script(_method)?` is deprecated")


@pytest.mark.parametrize("name", PLANTED)
def test_planted_leaks_are_found_and_called_by_their_names(name):
    planted = PLANTED[name]()
    report = audit(gr.Router(planted.model, planted.sites), planted.step, planted.batch, planted.labels)
    assert found(report) == planted.bypasses
    assert not report.clean
    assert {bypass.label for bypass in report.bypasses} == {0, 1}
    for bypass in report.bypasses:
        assert 0 < bypass.share <= 1 + 1e-9
        assert bypass.advice
        assert bypass.site in planted.sites or bypass.site.startswith(("layers", "transformer"))


def test_the_kl_is_no_bypass_when_it_is_routed_too():
    model = OriginalVAE()
    sites = {"latent": SPEC, "mean": SPEC, "spread": SPEC, "decoder.0": READS}
    assert audit(gr.Router(model, sites), model.loss, torch.randn(N, 5), labels()).clean


def test_the_share_is_the_part_of_the_gradient_that_the_label_should_not_give():
    model = OriginalVAE()
    router = gr.Router(model, {"latent": SPEC, "decoder.0": READS})
    x = torch.randn(N, 5)
    report = audit(router, model.loss, x, labels())
    with router(labels()[::2]):
        model.zero_grad()
        # The noise of the audit's first run of label 0 is that of the generator as it is now.
        model.loss(x[::2]).backward()
    total = torch.cat([p.grad.flatten() for p in model.parameters()]).double().norm()
    [bypass] = [b for b in report.bypasses if (b.label, b.target) == (0, "mean.weight")]
    assert bypass.share == pytest.approx(float(model.mean.weight.grad[2:].double().norm() / total), rel=1e-5)
    assert report.norms[0] == pytest.approx(float(total), rel=1e-5)


def test_readers_that_a_site_protects_are_no_bypass_and_without_it_they_are():
    model = net()
    router = gr.Router(model, {"0": SPEC})
    report = audit(router, step_of(model), torch.randn(N, 5), labels())
    assert found(report) == {("2.weight", "reader")}
    assert 'Site(spec, on="input", level="parameters")' in report.bypasses[0].advice
    router.remove()
    assert audit(gr.Router(model, SITES), step_of(model), torch.randn(N, 5), labels()).clean


def test_parameter_level_sites_are_clean_alone_and_for_whole_modules():
    model = net()
    sites = {"0": gr.Site(SPEC, level="parameters"), "2": READS}
    assert audit(gr.Router(model, sites), step_of(model), torch.randn(N, 5), labels()).clean
    whole = gr.RoutingSpec({0: 0, 1: ()}, 1)
    model = net()
    report = audit(
        gr.Router(model, {"4": gr.Site(whole, level="parameters")}), step_of(model), torch.randn(N, 5), labels()
    )
    assert report.clean
    assert report.parameters["4.weight"].routed[1] == 0 < report.parameters["4.weight"].unrouted[1]


def test_examples_that_may_teach_nothing_are_held_to_that():
    spec = gr.RoutingSpec({0: [0, 1], 1: [2, 3]}, WIDTH, unlabeled="none")
    model = nn.Sequential(nn.Linear(5, WIDTH), nn.Tanh(), nn.Linear(WIDTH, 3, bias=False))
    ids = torch.full((N,), gr.UNLABELED)
    report = audit(gr.Router(model, {"0": spec}), step_of(model), torch.randn(N, 5), ids)
    assert [(b.label, b.target, b.kind) for b in report.bypasses] == [(-1, "2.weight", "reader")]


@pytest.mark.parametrize("penalty", [None, "bias", "weight"])
@pytest.mark.parametrize("whole", [False, True], ids=["by units", "as a whole"])
def test_a_site_that_names_parameters_is_held_to_these_and_to_no_others(penalty, whole):
    model = nn.Sequential(nn.Linear(3, 2), nn.Tanh(), nn.Linear(2, 1))
    spec = gr.RoutingSpec({"retain": 0, "forget": []} if whole else {"retain": 0, "forget": 1}, 1 if whole else 2)
    router = gr.Router(model, {"0": gr.Site(spec, level="parameters", parameters=("bias",))})

    def step(x):
        loss = model(x).square().mean()
        return loss if penalty is None else loss + model[0].get_parameter(penalty).square().sum()

    report = audit(router, step, torch.randn(8, 3), torch.tensor([0, 1]).repeat(4))
    leaking = {"forget"} if whole else {"retain", "forget"}
    expected = {(label, "0.bias", "tied weight") for label in leaking} if penalty == "bias" else set()
    assert {(bypass.label, bypass.target, bypass.kind) for bypass in report.bypasses} == expected
