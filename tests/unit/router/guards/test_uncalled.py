"""Sites whose modules a block never calls, or calls beside what learns, are warned of."""

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import gradroute as gr
from unit.router.small import LABELS, SPEC, mlp


class WithTarget(nn.Module):
    """Two layers, of which one makes what the other is to come near to."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Linear(2, 3)
        self.target = nn.Linear(2, 3)

    def forward(self, x, target=None):
        found = self.encoder(x) if target is None else self.encoder(x) + target(x)
        with torch.no_grad():
            aim = self.target(x)
        return (found - aim).square()


def test_a_site_whose_module_is_never_called_warns():
    class Reads(nn.Module):
        def __init__(self):
            super().__init__()
            self.called, self.read = nn.Linear(2, 3), nn.Linear(3, 3)

        def forward(self, x):
            return nn.functional.linear(self.called(x), self.read.weight)

    model = Reads()
    router = gr.Router(model, {"called": SPEC, "read": SPEC})
    with pytest.warns(gr.UnroutedWarning, match="the sites 'read' did not"), router(LABELS):
        model(torch.ones(2, 2))


def test_an_ablated_module_that_is_never_called_warns():
    class Around(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(2, 3)

        def forward(self, x):
            return nn.functional.linear(x, self.inner.weight)

    model = Around()
    router = gr.Router(model, {"inner": SPEC})
    with pytest.warns(gr.UnroutedWarning, match="routed and ablated nothing"), torch.no_grad(), router.ablated(0):
        model(torch.ones(1, 2))


def test_a_block_in_which_the_model_did_not_run_does_not_warn():
    with gr.Router(mlp(), {"0": SPEC})(LABELS):
        pass


@pytest.mark.filterwarnings("error")
def test_a_block_that_raises_warns_of_no_site_behind_the_error():
    model = mlp()
    router = gr.Router(model, {"0": SPEC, "2": SPEC})

    def fail(*_):
        raise KeyError

    model[1].register_forward_hook(fail)
    with pytest.raises(KeyError), router(LABELS):
        model(torch.ones(2, 2))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("level", ["activations", "parameters"])
def test_a_site_that_the_model_computes_without_gradients_warns(level):
    model = WithTarget()
    router = gr.Router(model, {"target": gr.Site(SPEC, level=level)})
    with pytest.warns(gr.UnroutedWarning, match="the sites 'target' ran without gradients") as caught:
        for _ in range(2):
            with router(LABELS):
                model(torch.ones(2, 2)).sum().backward()
    assert len(caught) == 1


@pytest.mark.filterwarnings("error")
def test_passes_without_gradients_that_lose_nothing_do_not_warn():
    model = WithTarget()
    router = gr.Router(model, {"*": SPEC})
    with router(LABELS), torch.no_grad():  # the model as a whole
        model(torch.ones(2, 2))
    with router(LABELS):  # with gradients too, after and before
        with torch.no_grad():
            model.target(torch.ones(2, 2))
        model(torch.ones(2, 2), target=model.target).sum().backward()
    with router(LABELS), torch.no_grad():  # a part of it, when the model has learned before
        model.target(torch.ones(2, 2))


@pytest.mark.filterwarnings("error")
def test_a_reentrant_checkpoint_is_no_pass_without_gradients():
    x = torch.ones(2, 2, requires_grad=True)

    class Checkpointed(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = mlp()

        def forward(self, x):
            return checkpoint(self.inner, x, use_reentrant=True)

    model = Checkpointed()
    router = gr.Router(model, {"inner.0": SPEC})
    with router(LABELS):
        model(x).sum().backward()
    with router(LABELS):
        model(x).sum()  # backward may come later, or not at all


@pytest.mark.usefixtures("one_of_two_processes")
class TestOneOfSeveralProcesses:
    def test_training_what_was_exported_says_that_nothing_was_routed(self):
        """As the stages of a pipeline are that `torch.distributed.pipelining.pipeline` cuts out of a model."""
        model, x = nn.Sequential(nn.Linear(2, 2)), torch.ones(2, 2)
        program = torch.export.export(model, (x,)).module()
        router = gr.Router(model, {"0": gr.RoutingSpec.one_per_label(2)})
        with pytest.warns(gr.UnroutedWarning, match="got gradients"), router(torch.tensor([0, 1])):
            program(x).sum().backward()

    @pytest.mark.filterwarnings("error::gradroute.UnroutedWarning")
    def test_a_site_that_is_silent_here_may_have_run_elsewhere(self):
        model = nn.ModuleDict({"here": nn.Linear(2, 2), "there": nn.Linear(2, 2)})
        router = gr.Router(model, {"*": gr.RoutingSpec.one_per_label(2)})
        with router(torch.tensor([0, 1])):
            (model["here"](torch.ones(2, 2)) + model["there"](torch.ones(2, 2))).sum().backward()
        with router(torch.tensor([0, 1])):
            model["here"](torch.ones(2, 2)).sum().backward()
            model["there"].weight.grad = torch.ones(2, 2)  # as DistributedDataParallel writes it
