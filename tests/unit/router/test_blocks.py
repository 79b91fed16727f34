"""The blocks of a router: those that overlap, and labels that change before a block begins or in it."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

import gradroute as gr
from gradroute.errors import LabelError, UsageError
from gradroute.optim import Isolation
from gradroute.router._attachment import attachment_of
from unit.router.small import LABELS, SPEC, mlp

KINDS = {
    "labels": lambda router, label: router(torch.full((2,), label)),
    "deferred": lambda router, label: router.deferred(),
    "ablated": lambda router, label: router.ablated(label),
}


@pytest.mark.parametrize("other", KINDS)
@pytest.mark.parametrize("one", KINDS)
def test_blocks_that_overlap_are_refused_and_leave_none_open(one, other):
    model = mlp()
    router = gr.Router(model, {"0": SPEC})

    def task(kind, label):
        with KINDS[kind](router, label) as block:
            yield
            if kind == "deferred":
                block.set(torch.full((2,), label))

    first, second = task(one, 0), task(other, 1)
    next(first), next(second)
    for running in (first, second):  # neither ended within the other
        with pytest.raises(UsageError, match="blocks of one router overlapped"):
            next(running)
    assert router.labels is None
    assert not attachment_of(router).state.active
    with ThreadPoolExecutor(1) as pool, pytest.warns(gr.UnroutedWarning, match="no labels set"):
        pool.submit(lambda: model(torch.ones(2, 2))).result()  # as outside of blocks, in any thread


def test_labels_that_are_refused_as_a_block_begins_are_not_left_behind():
    model = mlp()
    router = gr.Router(model, {"0": SPEC})
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    labels = LABELS.clone()
    block = router(labels)
    with Isolation(router, optimizer):
        labels.fill_(1)
        with pytest.raises(LabelError, match="changed in place"):
            block.__enter__()
    assert router.labels is None


def test_labels_made_in_inference_mode_may_be_written_to_later():
    model = mlp()
    router = gr.Router(model, {"0": SPEC})
    expected = {}
    for name in ("kept", "written"):
        with torch.inference_mode():
            labels = LABELS.clone()
        model.zero_grad()
        with router(labels):
            loss = model(torch.ones(2, 2)).sum()
            if name == "written":
                with torch.inference_mode():
                    labels.fill_(1)
            loss.backward()
        expected[name] = model[0].bias.grad.clone()
    assert torch.equal(expected["kept"], expected["written"])
