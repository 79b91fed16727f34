"""What is noted while Dynamo traces: which sites were compiled, and that no labels were set."""

import pytest
import torch
from torch import nn

import gradroute as gr
from gradroute.router._attachment import attachment_of

SPEC = gr.RoutingSpec.one_per_label(3)
LABELS = torch.tensor([0, 1])


@pytest.fixture(autouse=True)
def _nothing_compiled_before():
    torch._dynamo.reset()


def test_the_sites_that_were_compiled_are_noted_and_no_others():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    router = gr.Router(model, {"0": SPEC, "1": SPEC})
    state = attachment_of(router).state
    torch.compile(nn.Linear(3, 3), backend="eager")(torch.ones(2, 3))
    assert state.traced == set()
    with router(LABELS):
        h = torch.compile(model[0], backend="eager")(torch.ones(2, 3))
        assert state.traced == {0}
        model[1](h).sum().backward()
    assert state.traced == {0}


def test_a_missing_label_is_said_once_for_all_that_is_compiled():
    model = nn.Linear(3, 3)
    gr.Router(model, {"": SPEC})
    compiled = torch.compile(model, backend="eager", dynamic=False)
    with pytest.warns(gr.UnroutedWarning, match="no labels set") as said:
        for size in (2, 3, 4):
            compiled(torch.ones(size, 3)).sum().backward()
    assert len([one for one in said if issubclass(one.category, gr.UnroutedWarning)]) == 1


@pytest.mark.filterwarnings("error")
def test_nothing_is_said_of_evaluation():
    model = nn.Linear(3, 3)
    gr.Router(model, {"": SPEC})
    with torch.no_grad():
        torch.compile(model, backend="eager")(torch.ones(2, 3))
    torch.compile(model.eval(), backend="eager")(torch.ones(2, 3))
