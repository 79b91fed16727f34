"""A copy of a routed model without its router does not learn unrouted without a word."""

import copy
import pickle

import pytest
import torch

import gradroute as gr
from gradroute.errors import UsageError
from unit.router.small import LABELS, SPEC, mlp


@pytest.mark.parametrize("again", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))], ids=["deepcopy", "pickle"])
def test_a_copy_of_the_model_alone_refuses_to_learn_unrouted(again):
    model = mlp()
    router = gr.Router(model, {"0": SPEC})
    stray = again(model)
    with router(LABELS), pytest.raises(UsageError, match="its router was not copied with it.*Copy both at once"):
        stray(torch.ones(2, 2))
    with torch.no_grad():
        assert torch.equal(stray(torch.ones(2, 2)), model(torch.ones(2, 2)))
