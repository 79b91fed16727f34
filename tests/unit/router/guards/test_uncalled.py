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


def assigned(model):
    model.load_state_dict({name: tensor.clone() for name, tensor in model.state_dict().items()}, assign=True)


def assigned_while_somebody_holds_the_old_ones(model):
    model.held = [*model.parameters()]
    assigned(model)


def made_of_meta_tensors(model):
    """As large models are, whose parameters come when the router is there already."""
    model.to("meta").to_empty(device="cpu")
    for parameter in model.parameters():
        nn.init.normal_(parameter)


def unfrozen(model):
    for parameter in model.parameters():
        parameter.requires_grad_(not parameter.requires_grad)


@pytest.mark.parametrize(
    "change", [assigned, assigned_while_somebody_holds_the_old_ones, made_of_meta_tensors, unfrozen]
)
@pytest.mark.parametrize("backward", ["in the block", "after it"])
def test_a_bypass_is_seen_by_the_parameters_that_there_are_now(change, backward):
    model = mlp()
    if change is unfrozen:
        model.requires_grad_(False)
    router = gr.Router(model, {"0": SPEC})
    with router(LABELS), torch.no_grad():
        model(torch.ones(2, 2))
    change(model)

    def around():
        with router(LABELS):
            loss = model[1](nn.functional.linear(torch.ones(2, 2), model[0].weight)).sum()
            if backward == "in the block":
                loss.backward()
        if backward == "after it":
            loss.backward()

    with pytest.warns(gr.UnroutedWarning, match="the sites '0' got gradients"):
        around()


@pytest.mark.filterwarnings("error")
def test_a_frozen_site_may_be_left_out_of_a_block():
    model = mlp()
    router = gr.Router(model, {"[01]": SPEC})
    with router(LABELS):
        model(torch.ones(2, 2)).sum().backward()
    model[0].requires_grad_(False)
    for _ in range(2):
        with router(LABELS):
            model[1](torch.ones(2, 3)).sum().backward()


@pytest.mark.filterwarnings("error")
def test_a_block_inside_of_a_functional_call_goes_by_the_parameters_of_the_module():
    model = mlp()
    router = gr.Router(model, {"0": SPEC})

    def loss(parameters, bias):
        def run(x):
            with router(LABELS):
                return model(x).sum()

        around = nn.Module()
        around.inner, around.forward = model, run
        return torch.func.functional_call(around, {**parameters, "inner.0.bias": bias * 1}, torch.ones(2, 2))

    parameters = {f"inner.{name}": p.detach() for name, p in model.named_parameters()}
    gradient = torch.func.grad(loss, argnums=1)(parameters, parameters["inner.0.bias"])
    assert gradient.ne(0).tolist() == [True, False, True]
    with pytest.warns(gr.UnroutedWarning, match="the sites '0' got gradients"), router(LABELS):
        nn.functional.linear(torch.ones(2, 2), model[0].weight).sum().backward()


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
