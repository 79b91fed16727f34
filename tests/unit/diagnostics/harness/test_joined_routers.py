"""Several routers on one model are looked at as one router with all of their sites would be."""

import pytest
import torch
from torch import nn

import gradroute as gr
from gradroute.diagnostics import PeriodicAudit
from gradroute.diagnostics.harness._joined_routers import joined, joined_labels
from gradroute.errors import LabelError, UsageError
from gradroute.router._attachment import attachment_of
from planted import PLANTED, SPEC, N, labels
from unit.diagnostics.clean import SITES, found, net, step_of


def both(model):
    return [gr.Router(model, {name: site}) for name, site in SITES.items()]


def test_of_one_it_is_the_router_itself():
    router, ids = gr.Router(net(), SITES), labels()
    assert joined(router) is router
    assert joined_labels(router, ids) is ids
    with pytest.raises(LabelError, match="a tensor or a mapping for one router; got a list"):
        joined_labels(router, [ids])


@pytest.mark.parametrize("listed", [False, True], ids=["one tensor", "a list"])
def test_the_report_is_that_of_one_router_with_all_sites(listed):
    model, x = net(), torch.randn(N, 5)
    router = gr.Router(model, SITES)
    expected = gr.audit(router, step_of(model), x, labels())
    router.remove()
    routers = both(model)
    report = gr.audit(routers, step_of(model), x, [labels(), labels()] if listed else labels())
    assert report.to_dict() == expected.to_dict()
    assert report.clean
    assert not gr.audit(routers[0], step_of(model), x, labels()).clean, "alone it does not protect the readers"


@pytest.mark.parametrize("name", ["KL of the original VAE", "experts", "tied autoencoder", "GPT-2"])
def test_a_planted_leak_is_found_whichever_router_has_the_site(name):
    planted = PLANTED[name]()
    routers = [gr.Router(planted.model, {pattern: site}) for pattern, site in planted.sites.items()]
    if len(routers) == 1:
        routers = [*routers, gr.Router(planted.model, {next(iter(planted.sites)): _open(planted)})]
    report = gr.audit(routers, planted.step, planted.batch, planted.labels)
    assert found(report) >= planted.bypasses


def _open(planted):
    """A site at the first one's place, at which every label may teach everything."""
    site = next(iter(planted.sites.values()))
    spec = site.spec if isinstance(site, gr.Site) else site
    everything = gr.RoutingSpec({label: slice(None) for label in spec.labels}, spec.width)
    if isinstance(site, gr.Site):
        return gr.Site(everything, on=site.on, level=site.level, dim=site.dim, index=site.index)
    return everything


def test_each_masks_by_labels_of_its_own():
    """Two labelings of the same examples: the report has a row for each pair of labels, by the masks of both."""
    model, x = net(), torch.randn(N, 5)
    topics = gr.RoutingSpec({"a": [0, 1, 2], "b": [3]}, 4)
    routers = [gr.Router(model, {"0": SPEC}), gr.Router(model, {"2": gr.Site(topics, on="input", level="parameters")})]
    ids, of_topic = labels(), topics.encode(["a", "a", "b", "b"] * (N // 4))
    report = gr.audit(routers, step_of(model), x, [ids, {"2": of_topic}])
    assert report.labels == ((0, "a"), (0, "b"), (1, "a"), (1, "b"))
    assert [site.name for site in report.sites] == ["0", "2"]
    for row, (label, topic) in enumerate(report.labels):
        for site, spec, name in zip(report.sites, (SPEC, topics), (label, topic), strict=True):
            taught = spec.mask(spec.encode([name]))[0] != 0
            assert site.taught[row] == tuple(taught.tolist())
            assert all(norm == 0 for norm, open_ in zip(site.routed[row], taught.tolist(), strict=True) if not open_)
            assert any(site.routed[row])


def test_nothing_is_left_behind():
    model = net()
    routers, x = both(model), torch.randn(N, 5)
    hooks = [len(module._forward_hooks) for module in model.modules()]
    gr.audit(routers, step_of(model), x, labels())
    assert [len(module._forward_hooks) for module in model.modules()] == hooks
    assert all(router.labels is None and not attachment_of(router).active for router in routers)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_periodic_audit_takes_them_too():
    model = net()
    check = PeriodicAudit(both(model), step_of(model))
    assert check(torch.randn(N, 5), [labels(), labels()]).clean
    assert {"audit/label_0", "audit/label_1"} <= check.values.keys()


def test_routers_that_do_not_go_together_are_refused():
    model = net()
    one, other = gr.Router(model, {"0": SPEC}), gr.Router(net(), {"0": SPEC})
    for given, message in (
        ([], r"a list of one or more of them; got \[\]"),
        ([one, model], r"got \['Router', 'Sequential'\]"),
        (nn.Linear(1, 1), "got Linear"),
        ([one, one], "given twice"),
        ([one, other], "on different models"),
    ):
        with pytest.raises(UsageError, match=message):
            gr.audit(given, step_of(model), torch.randn(N, 5), labels())
    gone = gr.Router(model, {"0": SPEC})
    gone.remove()
    with pytest.raises(UsageError, match="was removed"):
        gr.audit([one, gone], step_of(model), torch.randn(N, 5), labels())


def test_labels_that_do_not_serve_all_are_refused():
    model = net()
    named = gr.RoutingSpec({"a": [0, 1], "b": [2, 3]}, 4)
    routers = [gr.Router(model, {"0": SPEC}), gr.Router(model, {"1": named})]
    x = torch.randn(N, 5)
    for given, message in (
        (labels(), "name different labels.*give a list"),
        ({"0": labels()}, "one tensor for all 2 routers, or a list .* got a mapping"),
        ([labels()], "got 1 in a list"),
        ([labels(), {"0": labels()}], "labels for '0', no pattern of this router"),
        ([labels(), labels(N // 2)], "labels of the patterns are for"),
    ):
        with pytest.raises(LabelError, match=message):
            gr.audit(routers, step_of(model), x, given)
