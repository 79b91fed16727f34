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


@pytest.mark.parametrize("training", [True, False])
def test_a_copy_that_reads_a_batch_of_data_does_not_learn_without_a_word_either(training):
    """No gradient comes to what it reads."""
    model = torch.nn.Linear(2, 3)
    gr.Router(model, {"": gr.Site(gr.RoutingSpec.one_per_label(2), on="input", level="parameters")})
    stray = copy.deepcopy(model).train(training)
    match = "its router was not copied with it" if training else "without its router learns, in evaluation mode"
    with pytest.raises(UsageError, match=match) if training else pytest.warns(gr.UnroutedWarning, match=match):
        stray(torch.ones(2, 2)).sum().backward()
