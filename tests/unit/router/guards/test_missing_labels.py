"""A pass that learns outside of a block is warned of, once."""

import warnings
from dataclasses import dataclass

import pytest
import torch
from torch import nn

import gradroute as gr
from gradroute.router._attachment import attachment_of
from unit.router.small import LABELS, SPEC, mlp


class TestWithoutLabels:
    def test_a_training_pass_without_labels_warns_once(self):
        model = mlp()
        gr.Router(model, {"0": SPEC})
        with pytest.warns(
            gr.UnroutedWarning, match="site '0' ran a training forward pass with no labels set"
        ) as caught:
            model(torch.ones(2, 2))
            model(torch.ones(2, 2))
        assert len(caught) == 1

    def test_an_ablated_training_pass_without_labels_warns_too(self):
        model = mlp()
        router = gr.Router(model, {"0": SPEC})
        unrouted = pytest.warns(gr.UnroutedWarning, match="site '0' ran a training forward pass with no labels set")
        with unrouted, router.ablated(1):
            model(torch.ones(2, 2))

    def test_a_training_pass_that_returns_a_dataclass_warns_too(self):
        @dataclass
        class Output:
            hidden: torch.Tensor

        class Model(nn.Linear):
            def forward(self, x):
                return Output(super().forward(x))

        model = Model(2, 3)
        gr.Router(model, {"": gr.Site(SPEC, index="hidden")})
        with pytest.warns(gr.UnroutedWarning, match="no labels set"):
            model(torch.ones(2, 2))

    @pytest.mark.filterwarnings("error")
    def test_evaluation_without_labels_does_not_warn(self):
        model = mlp()
        gr.Router(model, {"0": SPEC})
        with torch.no_grad():
            model(torch.ones(2, 2))
        model.eval()(torch.ones(2, 2))

    @pytest.mark.filterwarnings("error")
    def test_a_training_pass_in_which_nothing_learns_does_not_warn(self):
        model = mlp().requires_grad_(False)
        gr.Router(model, {"0": SPEC})
        model(torch.ones(2, 2))

    def test_what_reads_a_batch_of_data_warns_without_labels(self):
        layer = nn.Linear(3, 2)
        gr.Router(layer, {"": gr.Site(gr.RoutingSpec.one_per_label(3), on="input", level="parameters")})
        with pytest.warns(gr.UnroutedWarning, match="no labels set"):
            layer(torch.ones(1, 3))


def learn_by_backward(model, x):
    model(x).sum().backward()


def learn_by_asking_for_gradients(model, x):
    torch.autograd.grad(model(x).sum(), list(model.parameters()))


class TestInEvaluationMode:
    """As what transformers' `from_pretrained` returns is in, whoever trains it."""

    @pytest.mark.parametrize("learn", [learn_by_backward, learn_by_asking_for_gradients])
    @pytest.mark.parametrize(
        "site", [gr.Site(SPEC), gr.Site(SPEC, level="parameters"), gr.Site(SPEC, on="input")], ids=str
    )
    def test_a_pass_that_learns_warns_once_as_it_does(self, learn, site):
        model = mlp().eval()
        gr.Router(model, {"1": site})
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            model(torch.ones(2, 2))
        with pytest.warns(gr.UnroutedWarning, match="'1' learned in evaluation mode with no labels set") as caught:
            learn(model, torch.ones(2, 2))
            learn(model, torch.ones(2, 2))
        assert len(caught) == 1

    @pytest.mark.parametrize("kind", [nn.Linear, lambda *sizes: nn.Sequential(nn.Linear(*sizes), nn.Tanh())])
    def test_what_reads_a_batch_of_data_warns_as_it_learns(self, kind):
        """To which no gradient comes."""
        model = kind(3, 2).eval()
        gr.Router(model, {"": gr.Site(gr.RoutingSpec.one_per_label(3), on="input", level="parameters")})
        with pytest.warns(gr.UnroutedWarning, match="learned in evaluation mode") as caught:
            for _ in range(2):
                learn_by_backward(model, torch.ones(2, 3))
        assert len(caught) == 1

    def test_a_pass_that_learns_warns_where_its_tensor_is_a_view_that_is_changed_in_place(self):
        class Views(nn.Linear):
            def forward(self, x):
                return super().forward(x).view(2, 3)

        model = nn.Sequential(Views(2, 3), nn.ReLU(inplace=True)).eval()
        gr.Router(model, {"0": SPEC})
        with pytest.warns(gr.UnroutedWarning, match="learned in evaluation mode"):
            learn_by_backward(model, torch.ones(2, 2))

    @pytest.mark.filterwarnings("error")
    def test_whoever_looks_at_gradients_is_not_warned(self):
        model = mlp().eval()
        router = gr.Router(model, {"0": SPEC})
        x = torch.ones(2, 2, requires_grad=True)
        torch.autograd.grad(model(x).sum(), x)
        hidden = model[0](x)
        torch.autograd.grad(model[1](hidden).sum(), hidden)
        model.requires_grad_(False)
        model(x).sum().backward()
        model.requires_grad_(True)
        with router(LABELS):
            model(x).sum().backward()
        with attachment_of(router).quiet():
            model(x).sum().backward()
