"""What a report of `watch` says, raises and turns into."""

import pytest
import torch
from torch import nn

import gradroute as gr
from gradroute import watch
from gradroute.errors import LeakError
from unit.diagnostics.watched import SPEC, net, step


def test_a_unit_that_was_zero_moved_infinitely_far_and_the_furthest_comes_first():
    model = net()
    nn.init.zeros_(model[0].bias)
    router = gr.Router(model, {"0": SPEC})
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with watch(model, optimizer, router) as watcher:
        step(
            model,
            optimizer,
            router,
            loss=lambda m: m[0].bias.sum() + 100 * m[0].weight.sum() + m(torch.ones(6, 5)).sum(),
        )
    assert [move.target for move in watcher.report.moves] == ["0.weight", "0.bias"]
    assert watcher.report.moves[1].relative == float("inf")
    assert watcher.report.to_dict()["moves"][1]["relative"] is None
    watcher.report.assert_clean(tolerance=watcher.report.moves[0].moved)  # it is not exceeded
    with pytest.raises(LeakError, match=r"'0\.weight' by"):
        watcher.report.assert_clean(tolerance=watcher.report.moves[1].moved)
