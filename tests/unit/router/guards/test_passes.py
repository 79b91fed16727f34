"""A pass that would not be routed is refused, or warned of: without labels, or in another thread."""

import copy
import threading
from dataclasses import dataclass

import pytest
import torch
from torch import nn

import gradroute as gr
from gradroute.errors import UsageError
from unit.router.small import LABELS, SPEC, UNLABELED, bias_gradient, mlp


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


class TestThreads:
    @pytest.mark.parametrize("block", [lambda router: router(LABELS), lambda router: router.ablated(0)])
    def test_another_thread_is_refused_while_one_is_in_a_block(self, block):
        model = mlp()
        router = gr.Router(model, {"0": SPEC})
        errors = []

        def run(action):
            try:
                action()
            except UsageError as error:
                errors.append(str(error))

        def enter():
            with router(UNLABELED):
                pass

        with block(router):
            for action in (enter, lambda: model(torch.ones(2, 2))):
                thread = threading.Thread(target=run, args=(action,))
                thread.start()
                thread.join()
        assert "in use in another thread" in errors[0]
        assert "site '0': the router holds the labels of another thread" in errors[1]

    def test_another_thread_may_go_on_after_the_block(self):
        router = gr.Router(mlp(), {"0": SPEC})
        entered = []

        def enter():
            with router(UNLABELED), router.ablated(0):
                entered.append(router.labels)

        for block in (router(LABELS), router.ablated(0)):
            with block:
                pass
            thread = threading.Thread(target=enter)
            thread.start()
            thread.join()
        assert len(entered) == 2

    def test_threads_with_a_model_and_router_each_do_not_disturb_each_other(self):
        results = {}

        def train(label):
            model = copy.deepcopy(base)
            router = gr.Router(model, {"0": SPEC})
            for _ in range(20):
                with router(torch.full((2,), label)):
                    results[label] = bias_gradient(model).ne(0).tolist()

        base = mlp()
        threads = [threading.Thread(target=train, args=(label,)) for label in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert results == {label: torch.eye(3).bool()[label].tolist() for label in range(3)}
