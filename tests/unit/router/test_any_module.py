"""Level "parameters" on modules of which nothing is known: one run in eager mode, and every output teaches."""

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

import gradroute as gr
from gradroute.router._any_module import has_learning_tensors
from gradroute.testing import assert_routed

SPEC = gr.RoutingSpec.one_per_label(4)


def own(spec: gr.RoutingSpec = SPEC, **options: object) -> gr.Site:
    return gr.Site(spec, level="parameters", **options)


class Counts(nn.Module):
    """An unknown module that counts its runs, draws random numbers, and returns a second output of the same weights."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 4)
        self.runs = 0

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        self.runs += 1
        y = torch.tanh(self.layer(x))
        return nn.functional.dropout(y, 0.5), y.square()


def test_it_runs_once_and_routes_what_it_drew() -> None:
    model = Counts()
    with gr.Router(model, {"": own(index=0)})(torch.tensor([1, 1])):
        y, _ = model(torch.ones(2, 3))
        assert model.runs == 1
        y.sum().backward()
    assert model.runs == 1
    learned = model.layer.weight.grad.any(1)
    assert not learned[[0, 2, 3]].any()
    assert learned[1] == (y[:, 1] != 0).any(), "what dropout left out teaches nothing"


def test_other_outputs_teach_the_parameters_whole() -> None:
    model = Counts()
    model(torch.ones(2, 3))[1].sum().backward()
    whole = model.layer.weight.grad.clone()
    model.zero_grad()
    with gr.Router(model, {"": own(index=0)})(torch.tensor([1, 1])):
        model(torch.ones(2, 3))[1].sum().backward()
    torch.testing.assert_close(model.layer.weight.grad, whole)


@pytest.mark.parametrize("ends", [["output"], ["input"], ["output", "input"]], ids=" and ".join)
def test_it_does_what_the_oracle_says(ends: list[str]) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 4)), nn.Linear(4, 2))
    assert_routed(model, {"1": [own(on=end) for end in ends]}, torch.randn(5, 4))


def test_second_derivatives_are_those_of_weights_fixed_off_the_route() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 4))
    x, labels = torch.randn(2, 3, requires_grad=True), torch.tensor([0, 2])
    taught = torch.eye(4)[labels].bool()
    fixed = {name: parameter.detach() for name, parameter in model.named_parameters()}

    def by_hand() -> torch.Tensor:
        return torch.where(taught, model(x), torch.func.functional_call(model, fixed, x))

    def second(output: torch.Tensor) -> list[torch.Tensor]:
        inputs = [x, *model.parameters()]
        first = torch.autograd.grad(output.pow(3).sum(), inputs, create_graph=True)
        return list(torch.autograd.grad(sum(gradient.square().sum() for gradient in first), inputs))

    expected = second(by_hand())
    with gr.Router(model, {"": own()})(labels):
        found = second(model(x))
    torch.testing.assert_close(found, expected)


def test_weights_that_are_plain_attributes_learn_too() -> None:
    layer = nn.Linear(3, 4, bias=False)
    assert has_learning_tensors(layer)
    layer.requires_grad_(False)
    assert not has_learning_tensors(layer)
    source = torch.randn(4, 3, requires_grad=True)
    del layer.weight
    layer.weight = source * 2
    assert has_learning_tensors(layer)


def test_one_tensor_of_several_outputs() -> None:
    model = nn.GRU(3, 4, batch_first=True)
    x = torch.randn(2, 5, 3, requires_grad=True)
    model(x)[0].sum().backward()
    whole = x.grad.clone()
    x.grad = None
    model.zero_grad()
    with gr.Router(model, {"": own(index=0)})(torch.tensor([0, 0])):
        model(x)[0].sum().backward()
    torch.testing.assert_close(x.grad, whole)
    assert model.weight_ih_l0.grad.any()


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated:FutureWarning")
@pytest.mark.parametrize(
    "computed",
    [lambda layer: prune.random_unstructured(layer, "weight", 0.2), lambda layer: nn.utils.weight_norm(layer, dim=1)],
    ids=["pruned", "weight norm"],
)
def test_weights_that_are_computed_before_each_pass_learn_by_route(computed) -> None:
    spec = gr.RoutingSpec.split({"retain": 3, "forget": 1})
    layer = nn.ConvTranspose1d(3, 4, 2)
    computed(layer)
    router = gr.Router(layer, {"": gr.Site(spec, level="parameters", dim=1)})
    with router(torch.zeros(2, dtype=torch.int64)):
        layer(torch.ones(2, 3, 5)).square().sum().backward()
    for name, parameter in layer.named_parameters():
        by_unit = parameter.grad.movedim(0 if name == "bias" else 1, 0).reshape(4, -1)
        assert by_unit[:3].any(1).all(), name
        assert not by_unit[3].any(), name
