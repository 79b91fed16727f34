"""`watch`: what an optimizer step moved that nobody taught is named and measured."""

import dataclasses
import json

import pytest
import torch
from torch import nn

import gradroute as gr
from gradroute import watch
from gradroute.errors import LeakError, UsageError
from gradroute.optim import Isolation
from gradroute.router._attachment import attachment_of
from unit.diagnostics.watched import SPEC, ZEROS, net, step

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


def statistics(report):
    return {move.target: move.units for move in report.moves if move.causes == ("buffer",)}


def test_what_a_closure_teaches_is_taught():
    """As in Lightning, whose optimizers compute gradients by a closure inside of the step."""
    model = net()
    router = gr.Router(model, {"0": SPEC})
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.1)

    def closure():
        optimizer.zero_grad()
        with router(ZEROS):
            loss = model(torch.randn(6, 5)).square().mean()
            loss.backward()
        return loss

    with watch(model, optimizer, router) as watcher:
        for call in (lambda: optimizer.step(closure), lambda: optimizer.step(closure=closure)):
            call()
            assert {(move.units, move.causes) for move in watcher.report.moves} == {((2, 3), ("weight decay",))}


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
        assert set(watcher.report.held) == {"0.weight", "0.bias"}, "in eval mode statistics take in nothing"


def test_statistics_are_those_of_the_norm_that_is_the_site_or_reads_it_and_of_no_other():
    model = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 6), nn.BatchNorm1d(6))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for name, units in (("1", (2, 3)), ("0", (2, 3)), ("3", (3, 4, 5))):
        spec = SPEC if name != "3" else gr.RoutingSpec.split({0: 3, 1: 3})
        router = gr.Router(model, {name: spec})
        norm = "4" if name == "3" else "1"
        with watch(model, optimizer, router) as watcher:
            step(model, optimizer, router)
        assert statistics(watcher.report) == {f"{norm}.running_mean": units, f"{norm}.running_var": units}
        router.remove()


def test_a_norm_that_reads_units_side_by_side_with_others_has_statistics_that_belong_to_nobody():
    class Doubled(nn.Module):
        def forward(self, x):
            return x.view(-1, 2, 2)  # the same memory, and other channels

    model = nn.Sequential(nn.Linear(5, 4), Doubled(), nn.BatchNorm1d(2), nn.Flatten(), nn.Linear(4, 2))
    router = gr.Router(model, {"0": SPEC})
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with watch(model, optimizer, router) as watcher:
        step(model, optimizer, router)
    assert watcher.report.clean


def test_statistics_are_compared_with_what_they_were_before_the_first_pass_of_the_step():
    model = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    router = gr.Router(model, {"0": SPEC})
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    x = torch.randn(6, 5)
    with watch(model, optimizer, router) as watcher:
        for _ in range(2):
            before = model[1].running_mean.clone()
            for _ in range(3):
                with router(ZEROS):
                    model(x).sum().backward()
            optimizer.step()
            [mean] = [move for move in watcher.report.moves if move.target == "1.running_mean"]
            change = (model[1].running_mean - before)[2:].double().norm()
            assert mean.moved == pytest.approx(float(change), rel=1e-6)
            with router(torch.tensor([0, 1] * 3)):
                model(x).sum().backward()
            optimizer.step()
            assert watcher.report.clean, "all units were taught"
            assert "1.running_mean" not in watcher.report.held


def test_norms_without_statistics_have_none_to_look_at():
    model = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4, track_running_stats=False), nn.Linear(4, 2))
    router = gr.Router(model, {"0": SPEC})
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with watch(model, optimizer, router) as watcher:
        step(model, optimizer, router)
    assert watcher.report.clean


def test_each_step_is_held_to_the_labels_since_the_last_one():
    """Also inside of one block, and where nobody asks for a report in between."""
    model = net()
    router = gr.Router(model, {"0": SPEC})
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.1)
    x = torch.randn(6, 5)
    with watch(model, optimizer, router) as watcher:
        step(model, optimizer, router, torch.tensor([0, 1] * 3))
        step(model, optimizer, router, 1 - ZEROS)
        assert {(move.target, move.units) for move in watcher.report.moves} == {
            ("0.weight", (0, 1)),
            ("0.bias", (0, 1)),
        }
        step(model, optimizer, router, torch.tensor([0, 1] * 3))
        assert watcher.report.clean
        with router(ZEROS):
            for _ in range(2):  # the second step has a gradient that an earlier pass left
                optimizer.zero_grad()
                model(x).sum().backward()
                optimizer.step()
                assert {move.units for move in watcher.report.moves} == {(2, 3)}
            optimizer.step()
            assert {move.units for move in watcher.report.moves} == {(2, 3)}, "the labels of the block still hold"


def test_only_what_is_frozen_counts_and_only_units_that_moved_are_named():
    model = net()
    router = gr.Router(model, {"0": gr.RoutingSpec({0: 0, 1: [1, 2, 3]}, 4)})
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.1)
    with torch.no_grad():
        model[0].weight[1] = 0  # which decay leaves where it is
        model[0].bias[1:] = 0
    with watch(model, optimizer, router) as watcher:
        step(model, optimizer, router)
        report = watcher.report
    [weight] = report.moves
    assert (weight.target, weight.units) == ("0.weight", (2, 3))
    assert report.held == ("0.bias",)
    assert weight.relative == pytest.approx(0.1 * 0.1, rel=1e-3)  # of the frozen rows alone


def test_what_neither_gradient_nor_state_nor_decay_explains_is_unknown():
    model = net()
    router = gr.Router(model, {"0": SPEC})
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
    step(model, optimizer, router, torch.tensor([0, 1] * 3))
    with watch(model, optimizer, router) as watcher:
        with router(ZEROS):
            model(torch.randn(6, 5))
        optimizer.zero_grad()  # so that the optimizer does nothing
        optimizer.step()
        with torch.no_grad():
            model[0].weight.add_(1)
    [move] = watcher.report.moves
    assert (move.target, move.units, move.causes) == ("0.weight", (2, 3), ("unknown",))
    assert "something else wrote to it" in move.advice


def test_a_report_that_is_asked_for_in_the_middle_of_a_step_is_that_of_the_step_before():
    model = net()
    router = gr.Router(model, {"0": SPEC})
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.1)
    seen = []
    with watch(model, optimizer, router) as watcher:
        step(model, optimizer, router)
        optimizer.register_step_pre_hook(lambda *_: seen.append(watcher.report))
        step(model, optimizer, router)
    assert [report.step for report in seen] == [1]
    assert {move.target for move in seen[0].moves} == {"0.weight", "0.bias"}


def test_the_report_of_a_closed_watch_is_that_of_when_it_was_closed():
    model = net()
    router = gr.Router(model, {"0": SPEC})
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    records = list(attachment_of(router).state.records)
    with watch(model, optimizer, router) as watcher:
        step(model, optimizer, router)
    assert attachment_of(router).state.records == records
    with torch.no_grad():
        model[0].weight.add_(1)
    assert watcher.report.clean


def test_a_weight_that_two_layers_share_is_frozen_where_it_is_in_both():
    """The rows of one and the columns of the other; what either may teach is no entry that nobody taught."""
    model = nn.ModuleList([nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)])
    model[1].weight = model[0].weight
    reads = gr.Site(gr.RoutingSpec({0: [0, 2], 1: [1, 3]}, 4), on="input", level="parameters")
    router = gr.Router(model, {"0": SPEC, "1": reads})
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.1)
    before = model[0].weight.detach().clone()
    with watch(model, optimizer, router) as watcher:
        step(model, optimizer, router, loss=lambda m: m[1](m[0](torch.randn(6, 4))).sum())
    [move] = watcher.report.moves
    frozen = torch.zeros(4, 4, dtype=torch.bool)
    frozen[2:, 1::2] = True  # untaught as rows of the one, and as columns of the other
    assert move.moved == pytest.approx(float((0.1 * 0.1 * before)[frozen].double().norm()), rel=1e-5)
    assert move.units == (), "no dimension counts what is frozen"
    router.remove()
    # A use at which no site is may teach all of it.
    router = gr.Router(model, {"0": SPEC})
    with watch(model, optimizer, router) as watcher:
        step(model, optimizer, router, loss=lambda m: m[1](m[0](torch.randn(6, 4))).sum())
    assert watcher.report.clean
    assert watcher.report.held == ()


def test_a_weight_with_routed_rows_and_columns_is_frozen_in_either():
    model = nn.Sequential(nn.Linear(4, 4, bias=False))
    reads = gr.Site(SPEC, on="input", level="parameters")
    router = gr.Router(model, {"0": [gr.Site(SPEC, level="parameters"), reads]})
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.1)
    before = model[0].weight.detach().clone()
    with watch(model, optimizer, router) as watcher:
        step(model, optimizer, router, loss=lambda m: m(torch.randn(6, 4)).sum())
    [move] = watcher.report.moves
    frozen = torch.ones(4, 4, dtype=torch.bool)
    frozen[:2, :2] = False
    assert move.moved == pytest.approx(float((0.1 * 0.1 * before)[frozen].double().norm()), rel=1e-5)


def test_a_module_that_belongs_to_one_unit_moves_as_a_whole():
    whole = gr.Site(gr.RoutingSpec({0: (), 1: 0}, 1), level="parameters")
    model = nn.Sequential(nn.Linear(5, 4), nn.LSTM(4, 3))
    router = gr.Router(model, {"1": dataclasses.replace(whole, index=0)})
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.1)
    with watch(model, optimizer, router) as watcher:
        step(model, optimizer, router, loss=lambda m: m(torch.randn(6, 5))[0].sum())
    assert {move.target for move in watcher.report.moves} == {f"1.{name}" for name, _ in model[1].named_parameters()}
    assert {move.units for move in watcher.report.moves} == {()}


def test_sparse_gradients_are_told_by_their_entries():
    model = nn.Sequential(nn.Embedding(9, 4, sparse=True), nn.Linear(4, 2))
    router = gr.Router(model, {"0": SPEC})
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    ids = torch.arange(6)
    with watch(model, optimizer, router) as watcher:
        step(model, optimizer, router, loss=lambda m: m(ids).sum())
        assert watcher.report.clean
        step(
            model,
            optimizer,
            router,
            loss=lambda m: m(ids).sum() + nn.functional.embedding(ids, m[0].weight, sparse=True).sum(),
        )
    assert [(move.target, move.units, move.causes) for move in watcher.report.moves] == [
        ("0.weight", (2, 3), ("gradient",))
    ]


def test_columns_of_readers_and_sites_without_parameters():
    model = net()
    sites = {"1": gr.Site(SPEC, on="input"), "2": gr.Site(SPEC, on="input", level="parameters")}
    router = gr.Router(model, sites)
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
