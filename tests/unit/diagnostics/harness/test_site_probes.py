"""A site's tensor is seen where the site is, also when others' hooks are there."""

import pytest
import torch

import gradroute as gr
from gradroute import audit
from gradroute.diagnostics.harness._site_probes import along_units
from planted import N, labels
from unit.diagnostics.clean import SITES, found, net

pytestmark = pytest.mark.filterwarnings(r"ignore:`torch\.jit\.script(_method)?` is deprecated")


def test_a_hook_that_sees_the_routed_tensor_is_no_bypass():
    model = net()
    seen = []
    model[0].register_forward_hook(lambda *args: seen.append(args[2].abs().mean()) or None)
    router = gr.Router(model, SITES)

    def step(x):
        seen.clear()
        return model(x).square().mean() + seen[0]

    assert audit(router, step, torch.randn(N, 5), labels()).clean
    # The same hook before the router's, and the site's own tensor is what goes round.
    model[0].register_forward_hook(lambda *args: seen.append(args[2].abs().mean()) or None, prepend=True)
    report = audit(router, step, torch.randn(N, 5), labels())
    assert found(report) == {(target, "auxiliary hook") for target in ("0", "0.weight", "0.bias")}


def test_a_tensors_units_come_first_and_all_of_it_is_one_whole_unit():
    x = torch.randn(2, 3, 4)
    assert torch.equal(along_units(x, gr.Site(gr.RoutingSpec.one_per_label(3), dim=1)), x.movedim(1, 0))
    one = gr.RoutingSpec({"a": 0, "b": []}, 1)
    for site in (gr.Site(one, dim=None), gr.Site(one, level="parameters", dim=1)):
        assert torch.equal(along_units(x, site), x[None])


def test_a_side_loss_past_a_whole_tensor_shows():
    sites = {"0": gr.Site(gr.RoutingSpec({0: 0, 1: []}, 1), dim=None)}
    model = net()
    router = gr.Router(model, sites)
    data, ids = torch.randn(N, 5), torch.arange(N) % 2
    report = audit(router, lambda x: model(x).square().mean(), data, ids)
    assert report.clean
    assert report.sites[0].routed[1] == (0.0,)
    assert report.sites[0].unrouted[1][0] > 0
    seen = []
    model[0].register_forward_hook(lambda *args: seen.append(args[2].abs().mean()) or None, prepend=True)
    report = audit(router, lambda x: seen.clear() or model(x).square().mean() + seen[0], data, ids)
    assert {(bypass.label, bypass.target) for bypass in report.bypasses} >= {(1, "0"), (1, "0.weight")}
