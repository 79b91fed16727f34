"""A pass that would not be routed is refused, or warned of: without labels, or in another thread."""

import copy
import threading

import pytest
import torch

import gradroute as gr
from gradroute.errors import UsageError
from unit.router.small import LABELS, SPEC, UNLABELED, bias_gradient, mlp


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
