"""What is noted while Dynamo traces a site: it is a router's own, and warns once of what compiled code cannot."""

import warnings

import pytest
import torch
from torch import nn

import gradroute as gr
from gradroute.router._attachment import attachment_of

SPEC = gr.RoutingSpec.one_per_label(3)


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch.compiler.reset()


def compiled():
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 3))
    router = gr.Router(model, {"1": SPEC})
    return router, attachment_of(router).state, torch.compile(model, backend="eager", fullgraph=True)


def test_a_site_is_noted_as_traced_and_nobody_says_that_it_did_not_run():
    router, state, model = compiled()
    assert not state.traced
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with router(torch.tensor([0, 1])):
            model(torch.ones(2, 2))
    assert state.traced == {0}


def test_a_training_pass_without_labels_warns_as_it_is_traced():
    _, _, model = compiled()
    with pytest.warns(gr.UnroutedWarning, match="site '1' ran a training forward pass with no labels set") as caught:
        model(torch.ones(2, 2))
        model(torch.ones(2, 2))
    assert len(caught) == 1


def test_a_router_that_is_gone_is_no_error():
    from gradroute.router import _traced

    assert _traced.note("no such router", 0, "1") == 0
