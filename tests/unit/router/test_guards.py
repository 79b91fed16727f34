"""What could lose the mask is refused, or warned of."""

import copy
import pickle
import threading
from dataclasses import dataclass

import pytest
import torch
from torch import nn

import gradroute as gr
from gradroute.errors import LabelError, SiteError, UsageError
from gradroute.optim import Isolation
from gradroute.router._attachment import attachment_of
from unit.router.small import LABELS, SPEC, UNLABELED, bias_gradient, mlp


class TestWhatCouldLoseTheMask:
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

    def test_a_site_whose_module_is_never_called_warns(self):
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

    @pytest.mark.filterwarnings("error")
    def test_a_block_in_which_the_model_did_not_run_does_not_warn(self):
        with gr.Router(mlp(), {"0": SPEC})(LABELS):
            pass

    @pytest.mark.filterwarnings("error")
    def test_a_block_that_raises_warns_of_no_site_behind_the_error(self):
        model = mlp()
        router = gr.Router(model, {"0": SPEC, "2": SPEC})

        def fail(*_):
            raise KeyError

        model[1].register_forward_hook(fail)
        with pytest.raises(KeyError), router(LABELS):
            model(torch.ones(2, 2))

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

    @pytest.mark.parametrize("ran_before", [False, True])
    def test_a_module_that_was_replaced_is_refused(self, ran_before):
        model = mlp()
        router = gr.Router(model, {"0": SPEC})
        if ran_before:
            with router(LABELS):
                model(torch.ones(2, 2))
        model[0] = nn.Linear(2, 3)
        with pytest.raises(UsageError, match="modules of the sites '0' are no longer in the model"):
            router(LABELS).__enter__()
        with pytest.raises(UsageError, match="no longer in the model"):
            router.ablated(0).__enter__()
        assert router.labels is None

    def test_a_module_that_was_wrapped_is_routed_still(self):
        model = mlp()
        router = gr.Router(model, {"0": SPEC})
        model[0] = nn.Sequential(model[0])
        for _ in range(2):
            with router(LABELS):
                model(torch.ones(2, 2)).sum().backward()
            assert model[0][0].bias.grad[1] == 0

    @pytest.mark.parametrize("trainable", [False, True])
    def test_an_adapter_put_around_a_site_later_is_refused_if_it_learns(self, trainable):
        class Adapted(nn.Module):
            def __init__(self, base):
                super().__init__()
                self.base_layer = base
                self.adapter = nn.Linear(2, 3, bias=False).requires_grad_(trainable)

            def forward(self, x):
                return self.base_layer(x) + self.adapter(x)

        model = mlp()
        router = gr.Router(model, {"0": SPEC})
        model[0] = Adapted(model[0])
        for _ in range(2):
            if trainable:
                with pytest.raises(UsageError, match=r"'0' was wrapped in a Adapted .*\('adapter.weight'\)"):
                    router(LABELS).__enter__()
            else:
                with router(LABELS):
                    model(torch.ones(2, 2)).sum().backward()

    @pytest.mark.parametrize(
        "block", [lambda router, label: router(label.expand(2)), lambda router, label: router.ablated(label.item())]
    )
    def test_blocks_that_overlap_are_refused_and_leave_none_open(self, block):
        router = gr.Router(mlp(), {"0": SPEC})

        def task(label):
            with block(router, torch.tensor(label)):
                yield

        one, other = task(0), task(1)
        next(one), next(other)
        for running in (one, other):  # neither ended within the other
            with pytest.raises(UsageError, match="blocks of one router overlapped"):
                next(running)
        assert router.labels is None
        assert not attachment_of(router).state.active

    def test_labels_that_are_refused_as_a_block_begins_are_not_left_behind(self):
        model = mlp()
        router = gr.Router(model, {"0": SPEC})
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        labels = LABELS.clone()
        block = router(labels)
        with Isolation(router, optimizer):
            labels.fill_(1)
            with pytest.raises(LabelError, match="changed in place"):
                block.__enter__()
        assert router.labels is None

    def test_labels_made_in_inference_mode_may_be_written_to_later(self):
        model = mlp()
        router = gr.Router(model, {"0": SPEC})
        expected = {}
        for name in ("kept", "written"):
            with torch.inference_mode():
                labels = LABELS.clone()
            model.zero_grad()
            with router(labels):
                loss = model(torch.ones(2, 2)).sum()
                if name == "written":
                    with torch.inference_mode():
                        labels.fill_(1)
                loss.backward()
            expected[name] = model[0].bias.grad.clone()
        assert torch.equal(expected["kept"], expected["written"])

    def test_an_ablated_module_that_is_never_called_warns(self):
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

    @pytest.mark.parametrize(
        "again", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))], ids=["deepcopy", "pickle"]
    )
    def test_a_copy_of_the_model_alone_refuses_to_learn_unrouted(self, again):
        model = mlp()
        router = gr.Router(model, {"0": SPEC})
        stray = again(model)
        with router(LABELS), pytest.raises(UsageError, match="its router was not copied with it.*Copy both at once"):
            stray(torch.ones(2, 2))
        with torch.no_grad():
            assert torch.equal(stray(torch.ones(2, 2)), model(torch.ones(2, 2)))


@pytest.mark.parametrize("grad", [False, True])
def test_a_module_that_works_in_place_on_an_input_with_silent_units_is_refused_without_gradients_too(grad):
    """Its caller would go on with units that are on."""
    quiet = gr.RoutingSpec.one_per_label(3, silent="others")
    model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(inplace=True))
    router = gr.Router(model, {"1": gr.Site(quiet, on="input")})
    with torch.set_grad_enabled(grad), router(torch.tensor([0])), pytest.raises(SiteError, match="works in place"):
        model(torch.randn(1, 2))
