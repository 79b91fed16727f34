import json

import pytest
import torch
from torch import nn

import gradroute as gr
from gradroute.errors import LeakError, UsageError
from gradroute.optim import Isolation
from gradroute.watch import watch

SPEC = gr.RoutingSpec({0: [0, 1], 1: [2, 3]}, 4)
ZEROS = torch.zeros(6, dtype=torch.int64)


def net(bias=True):
    return nn.Sequential(nn.Linear(5, 4, bias=bias), nn.Tanh(), nn.Linear(4, 2))


def step(model, optimizer, router, labels=ZEROS, loss=None):
    optimizer.zero_grad()
    with router(labels):
        (loss(model) if loss else model(torch.randn(6, 5)).square().mean()).backward()
    optimizer.step()


CASES = {
    "plain": (lambda p: torch.optim.SGD(p, lr=0.1), 0, set()),
    "momentum": (lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9), 1, {"momentum"}),
    "decay": (lambda p: torch.optim.SGD(p, lr=0.1, weight_decay=0.1), 0, {"weight decay"}),
    "adamw": (lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0.1), 1, {"momentum", "weight decay"}),
    "fresh adam": (lambda p: torch.optim.Adam(p, lr=0.1), 0, set()),
}


@pytest.mark.parametrize("case", CASES)
def test_what_moves_frozen_units_is_named_and_measured(case):
    make, warm, causes = CASES[case]
    model = net()
    router = gr.Router(model, {"0": SPEC})
    optimizer = make(model.parameters())
    for _ in range(warm):
        step(model, optimizer, router, torch.tensor([0, 1] * 3))
    before = model[0].weight.detach().clone()
    with watch(model, optimizer, router) as watcher:
        step(model, optimizer, router)
    report = watcher.report
    assert {cause for move in report.moves for cause in move.causes} == causes
    assert report.clean == (not causes)
    for move in report.moves:
        assert move.units == (2, 3)
    if causes:
        [weight] = [move for move in report.moves if move.target == "0.weight"]
        change = (model[0].weight.detach() - before)[2:].double().norm()
        assert weight.moved == pytest.approx(float(change))
        assert weight.relative == pytest.approx(float(change / before[2:].double().norm()), rel=1e-6)
        with pytest.raises(LeakError, match=r"'0.weight' by .* \(.*(momentum|weight decay)"):
            report.assert_clean()
        report.assert_clean(tolerance=10.0)
    else:
        assert set(report.held) == {"0.weight", "0.bias"}
        report.assert_clean()


def test_isolation_holds_whichever_comes_first():
    for isolated_first in (True, False):
        model = net()
        router = gr.Router(model, {"0": SPEC})
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.1)
        step(model, optimizer, router, torch.tensor([0, 1] * 3))
        if isolated_first:
            isolation = Isolation(router, optimizer)
            watcher = watch(model, optimizer, router)
        else:
            watcher = watch(model, optimizer, router)
            isolation = Isolation(router, optimizer)
        optimizer.zero_grad()
        isolation.discard()
        step(model, optimizer, router)
        assert watcher.report.clean, watcher.report
        watcher.close()


def test_a_gradient_around_the_route_and_a_label_that_occurs():
    model = net()
    router = gr.Router(model, {"0": SPEC})
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with watch(model, optimizer, router) as watcher:
        step(model, optimizer, router, loss=lambda m: m(torch.randn(6, 5)).mean() + m[0].weight.square().sum())
        assert [(move.target, move.causes) for move in watcher.report.moves] == [("0.weight", ("gradient",))]
        step(model, optimizer, router, torch.tensor([0, 1] * 3))
        assert watcher.report.clean
        assert watcher.report.step == 2
        assert watcher.report.held == ()  # no unit is frozen
        with pytest.warns(gr.UnroutedWarning):
            model(torch.randn(6, 5)).sum().backward()
        optimizer.step()
        assert watcher.report.held == ()


def test_running_statistics_of_units_that_nobody_taught():
    model = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    router = gr.Router(model, {"0": SPEC})
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with watch(model, optimizer, router) as watcher:
        step(model, optimizer, router)
        assert {(m.target, m.units, m.causes) for m in watcher.report.moves} == {
            ("1.running_mean", (2, 3), ("buffer",)),
            ("1.running_var", (2, 3), ("buffer",)),
        }
        model[1].eval()
        step(model, optimizer, router)
        assert watcher.report.clean


def test_columns_of_readers_and_sites_without_parameters():
    model = net()
    router = gr.Router(model, {"1": SPEC, "2": gr.Site(SPEC, on="input", level="parameters")})
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.1)
    with watch(model, optimizer, router) as watcher:
        step(model, optimizer, router)
    assert [(m.target, m.units) for m in watcher.report.moves] == [("2.weight", (2, 3))]
    assert any("'1'" in note for note in watcher.report.notes)


def test_it_leaves_nothing_behind_and_says_what_it_needs():
    model = net()
    router = gr.Router(model, {"0": SPEC})
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.1)
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]
    watcher = watch(model, optimizer, router)
    with pytest.raises(UsageError, match="not stepped"):
        watcher.report
    step(model, optimizer, router)
    watcher.close()
    watcher.close()
    assert [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()] == hooks
    assert not optimizer._optimizer_step_pre_hooks
    assert not optimizer._optimizer_step_post_hooks
    with pytest.raises(UsageError, match="got another"):
        watch(net(), optimizer, router)
    with pytest.raises(UsageError, match="got str"):
        watch(model, "adam", router)
    data = json.loads(json.dumps(watcher.report.to_dict(), allow_nan=False))
    assert data["moves"][0]["target"] == "0.weight"
    for text in (str(watcher.report), watcher.report.to_markdown(), watcher.report._repr_html_()):
        assert "weight decay" in text
