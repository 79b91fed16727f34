"""Hooks of a router that somebody else took off are missed at the next block."""

import copy
import pickle
from collections import OrderedDict

import pytest
import torch
from torch import nn

import gradroute as gr
from gradroute.errors import UsageError
from unit.router.small import LABELS, SPEC

X = torch.tensor([[1.0, 2.0], [3.0, -1.0]])


def model():
    """A site on the ReLU, which has no parameters by which a bypass could be seen."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))


def cleared(module):
    module._forward_hooks.clear()
    module._forward_pre_hooks.clear()


def replaced(module):
    """As a tool does that puts all hooks aside, and forgets them."""
    module._forward_hooks, module._forward_pre_hooks = OrderedDict(), OrderedDict()


@pytest.mark.parametrize("take_off", [cleared, replaced])
@pytest.mark.parametrize("on", ["output", "input"])
def test_a_block_after_hooks_were_taken_off_is_refused(take_off, on):
    net = model()
    router = gr.Router(net, {"1": gr.Site(SPEC, on=on)})
    with router(LABELS):
        net(X).sum().backward()
    assert not net[0].bias.grad[1]
    for module in net.modules():
        take_off(module)
    for block in (router(LABELS), router.ablated(0), router.deferred()):
        with pytest.raises(UsageError, match="hooks of this router are no longer on the model"), block:
            net(X).sum().backward()
    assert not net[0].bias.grad[1]  # nothing has run


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("again", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))], ids=["deepcopy", "pickle"])
def test_hooks_of_others_may_come_and_go_and_a_copy_has_hooks_of_its_own(again):
    net = model()
    handle = net[1].register_forward_hook(lambda *_: None)
    router = gr.Router(net, {"1": SPEC})
    handle.remove()
    other, its = again((net, router))
    cleared(net[1])
    with its(LABELS):
        other(X).sum().backward()
    assert not other[0].bias.grad[1]
    cleared(other[1])
    with pytest.raises(UsageError, match="no longer on the model"), its(LABELS):
        other(X)
