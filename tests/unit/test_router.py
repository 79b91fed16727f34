"""`Router` and `RoutedModule`: labels in flight, several sites and routers, ablation, and what could lose a mask."""

import copy
import pickle
import threading
from dataclasses import dataclass

import pytest
import torch
from torch import nn

import gradroute as gr
from gradroute.errors import LabelError, SpecError, UsageError
from gradroute.optim import Isolation
from gradroute.router._attachment import attachment_of

SPEC = gr.RoutingSpec.one_per_label(3)
WHOLE = gr.RoutingSpec(dict.fromkeys(range(3), 0), 1)
LABELS = torch.tensor([0, 2])
UNLABELED = torch.full((2,), gr.UNLABELED)


def mlp():
    return nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 3), nn.Linear(3, 1))


def bias_gradient(model, layer=0, x=None):
    model.zero_grad()
    model(torch.ones(2, 2) if x is None else x).sum().backward()
    return model[layer].bias.grad.clone()


class TestLabels:
    def test_are_those_of_the_innermost_block_and_gone_after_it(self):
        model = mlp()
        router = gr.Router(model, {"0": SPEC})
        other = torch.tensor([1, 1])
        assert router.labels is None
        with router(LABELS) as entered:
            assert entered is router
            assert router.labels is LABELS
            outer = bias_gradient(model)
            with router(other):
                assert router.labels is other
                assert bias_gradient(model)[[0, 2]].eq(0).all()
            assert router.labels is LABELS
            assert torch.equal(bias_gradient(model), outer)
            assert outer[1] == 0
        assert router.labels is None

    @pytest.mark.filterwarnings("ignore::gradroute.UnroutedWarning")
    def test_mask_nothing_before_and_after_the_block(self):
        model = mlp()
        plain = bias_gradient(model)
        router = gr.Router(model, {"0": SPEC})
        assert torch.equal(bias_gradient(model), plain)
        with router(LABELS):
            assert not torch.equal(bias_gradient(model), plain)
        assert torch.equal(bias_gradient(model), plain)

    def test_are_put_back_when_the_block_raises(self):
        router = gr.Router(mlp(), {"0": SPEC})
        with pytest.raises(KeyError), router(LABELS):
            raise KeyError
        assert router.labels is None

    def test_stay_with_their_forward_pass_when_backward_comes_after_the_block(self):
        model = mlp()
        router = gr.Router(model, {"0": SPEC})
        with router(LABELS):
            inside = bias_gradient(model)
        model.zero_grad()
        with router(LABELS):
            loss = model(torch.ones(2, 2)).sum()
        with router(UNLABELED):
            loss.backward()
        assert torch.equal(model[0].bias.grad, inside)

    @pytest.mark.parametrize(
        ("labels", "message"),
        [
            (torch.tensor([0, 3]), "unknown label 3"),
            (torch.ones(2, 2).bool(), "one column per label"),
            ([0, 1], "labels must be a torch.Tensor; got list"),
            (None, "labels must be a torch.Tensor; got NoneType"),
        ],
    )
    def test_that_do_not_fit_the_spec_are_refused_before_the_block_begins(self, labels, message):
        with pytest.raises(LabelError, match=message):
            gr.Router(mlp(), {"0": SPEC})(labels)

    def test_that_do_not_fit_the_tensor_are_refused_by_the_site_by_name(self):
        model = mlp()
        router = gr.Router(model, {"0": SPEC})
        with router(torch.zeros(3).long()), pytest.raises(LabelError, match=r"site '0': labels of shape \(3,\)"):
            model(torch.ones(2, 2))
        router.remove()
        wide = gr.Router(model, {"2": SPEC})
        with wide(LABELS), pytest.raises(LabelError, match=r"site '2': the spec routes 3 units, .* has 1 along dim 1"):
            model(torch.ones(2, 2))

    def test_differ_by_pattern_where_given_so(self):
        model = mlp()
        router = gr.Router(model, {"0": SPEC, "1": gr.RoutingSpec({"x": 0, "y": [1, 2]}, 3)})
        with router({"0": torch.tensor([1, 1]), "1": torch.tensor([0, 0])}):
            model(torch.ones(2, 2)).sum().backward()
        assert model[0].bias.grad.ne(0).tolist() == [False, True, False]
        assert model[1].bias.grad.ne(0).tolist() == [True, False, False]

    def test_in_one_tensor_for_specs_that_name_different_labels_are_refused(self):
        router = gr.Router(mlp(), {"0": SPEC, "1": gr.RoutingSpec({"x": 0}, 3)})
        with pytest.raises(LabelError, match="the sites '0' and '1' name different labels.*pass a mapping"):
            router(LABELS)

    @pytest.mark.parametrize(
        ("labels", "message"),
        [
            ({"0": LABELS}, "no labels for '1'"),
            ({"0": LABELS, "1": LABELS, "2": LABELS}, "'2', no pattern of this router"),
        ],
    )
    def test_by_pattern_must_name_each_pattern_and_no_other(self, labels, message):
        with pytest.raises(LabelError, match=message):
            gr.Router(mlp(), {"0": SPEC, "1": SPEC})(labels)


class TestSeveral:
    def test_sites_and_routers_on_one_module_multiply_their_masks(self):
        half = gr.RoutingSpec({label: gr.Route(label, 0.5, elsewhere=1.0) for label in range(3)}, 3)
        model = mlp()
        plain = bias_gradient(model)
        one = gr.Router(model, {"0": [gr.Site(SPEC), gr.Site(half)]})
        with one(torch.tensor([0, 0])):
            assert torch.equal(bias_gradient(model), plain * torch.tensor([0.5, 0, 0]))
        one.remove()
        first, second = gr.Router(model, {"0": SPEC}), gr.Router(model, {"0": half})
        with first(torch.tensor([0, 0])), second(torch.tensor([0, 0])):
            assert torch.equal(bias_gradient(model), plain * torch.tensor([0.5, 0, 0]))
        first.remove()
        with second(torch.tensor([0, 0])):
            assert torch.equal(bias_gradient(model), plain * torch.tensor([0.5, 1, 1]))

    def test_sites_are_listed_by_module(self):
        router = gr.Router(mlp(), {"[01]": SPEC, "1": gr.Site(SPEC, on="input")})
        assert dict(router.sites) == {"0": (gr.Site(SPEC),), "1": (gr.Site(SPEC), gr.Site(SPEC, on="input"))}
        assert "'0': Site(spec=RoutingSpec.one_per_label(3)" in repr(router)

    def test_a_hook_that_was_there_first_sees_the_routed_output_and_cannot_go_around_it(self):
        model = mlp()
        penalty = []
        model[0].register_forward_hook(lambda module, args, output: penalty.append(output.abs().sum()))
        router = gr.Router(model, {"0": SPEC})
        with router(torch.tensor([1, 1])):
            model(torch.ones(2, 2))
        penalty[0].backward()
        assert model[0].bias.grad.ne(0).tolist() == [False, True, False]

    @pytest.mark.parametrize("sites", [{}, None, {"0": 3}, {"0": [SPEC, 3]}])
    def test_sites_of_another_type_are_refused(self, sites):
        with pytest.raises(
            gr.RoutingError, match=r"sites must map|needs a RoutingSpec, a Site or several sites; got int"
        ):
            gr.Router(mlp(), sites)


class TestOn:
    def test_input_stops_what_leaves_towards_upstream_and_the_module_itself_learns_whole(self):
        model = mlp()
        plain = bias_gradient(model), model[1].weight.grad.clone()
        router = gr.Router(model, {"1": gr.Site(SPEC, on="input")})
        with router(torch.tensor([1, 1])):
            routed = bias_gradient(model)
        assert torch.equal(routed, plain[0] * torch.tensor([0, 1, 0]))
        assert torch.equal(model[1].weight.grad, plain[1])


class TestAblated:
    SPEC = gr.RoutingSpec({"a": [0, 1], "b": [1, 2]}, 4, shared=3)

    def linear(self):
        model = nn.Linear(2, 4)
        return model, gr.Router(model, {"": self.SPEC})

    def test_units_of_the_label_alone_are_exactly_zero_for_the_block(self):
        model, router = self.linear()
        x = torch.randn(2, 2)
        plain = model(x.detach()) if not model.training else model.eval()(x)
        with router.ablated("a"):
            assert torch.equal(model(x), plain * torch.tensor([0, 1, 1, 1]))
            with router.ablated("b"):
                assert torch.equal(model(x), plain * torch.tensor([0, 0, 0, 1]))
            assert torch.equal(model(x), plain * torch.tensor([0, 1, 1, 1]))
        assert torch.equal(model(x), plain)

    def test_ablated_units_are_zero_even_where_they_were_inf_or_nan(self):
        module = nn.Identity()
        router = gr.Router(module, {"": self.SPEC})
        with router.ablated("a", "b"):
            assert module(torch.full((1, 4), float("nan")))[0, :3].tolist() == [0, 0, 0]

    def test_composes_with_routing_and_ablated_units_learn_nothing(self):
        model, router = self.linear()
        with router(torch.tensor([0, 0])), router.ablated("b"):
            model(torch.ones(2, 2)).sum().backward()
        assert model.bias.grad.tolist() == [2, 2, 0, 2]

    def test_input_sites_and_other_dims_ablate_too(self):
        conv = nn.Conv2d(4, 1, 1, bias=False)
        router = gr.Router(conv, {"": gr.Site(self.SPEC, on="input", dim=1)})
        x = torch.randn(2, 4, 3, 3)
        with router.ablated("a"):
            out = conv(x)
        kept = x * torch.tensor([0.0, 1, 1, 1])[:, None, None]
        assert torch.equal(out, conv.eval()(kept))

    @pytest.mark.parametrize(
        ("labels", "error", "message"),
        [
            (("c",), SpecError, "'c' is not a label of any site of this router. Did you mean|Known: 'a', 'b'"),
            ((), UsageError, "ablated\\(\\) needs the labels"),
        ],
    )
    def test_misuse_is_an_error(self, labels, error, message):
        _, router = self.linear()
        with pytest.raises(error, match=message):
            router.ablated(*labels)

    def test_ablating_what_others_teach_wholly_is_an_error_and_no_silent_nothing(self):
        router = gr.Router(nn.Linear(2, 2), {"": gr.RoutingSpec({"a": 0, "b": [0, 1]}, 2)})
        with pytest.raises(UsageError, match="ablating 'a' would switch nothing off"):
            router.ablated("a")


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

    def test_a_removed_router_refuses_to_route(self):
        router = gr.Router(mlp(), {"0": SPEC})
        router.remove()
        for use in (lambda: router(LABELS), lambda: router.ablated(0)):
            with pytest.raises(UsageError, match="this router was removed"):
                use()
        assert repr(router) == "Router(removed)"

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

    @pytest.mark.parametrize(
        "again", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))], ids=["deepcopy", "pickle"]
    )
    def test_a_copy_made_inside_of_an_ablated_block_has_nothing_off(self, again):
        model = mlp()
        router = gr.Router(model, {"0": SPEC})
        with router.ablated(0):
            copied, its_router = again((model, router))
        with router(LABELS), its_router(LABELS):
            assert torch.equal(copied(torch.ones(2, 2)), model(torch.ones(2, 2)))

    @pytest.mark.parametrize("again", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))])
    def test_a_copy_of_model_and_router_together_routes_on_its_own(self, again):
        model = mlp()
        router = gr.Router(model, {"0": SPEC})
        with router(LABELS):
            expected = bias_gradient(model)
            twin, twin_router = again((model, router))
            assert twin_router.labels is None
        with twin_router(LABELS):
            assert torch.equal(bias_gradient(twin), expected)
        twin_router.remove()
        assert not twin[0]._forward_hooks
        assert model[0]._forward_hooks
        with pytest.raises(UsageError, match="this router was removed"):
            again((twin, twin_router))[1](LABELS)

    def test_a_new_router_takes_what_a_stray_copy_carries_off_without_a_trace(self):
        model = mlp()
        gr.Router(model, {"0": SPEC, "1": gr.Site(SPEC, on="input"), "2": gr.Site(WHOLE, level="parameters")})
        stray = copy.deepcopy(model)
        gr.Router(stray, {"0": SPEC}).remove()
        plain = mlp()
        for module, without in zip(stray.modules(), plain.modules(), strict=True):
            assert {name: value for name, value in vars(module).items() if "hooks" in name or name == "forward"} == {
                name: value for name, value in vars(without).items() if "hooks" in name
            }


class TestRoutedModule:
    def test_routes_by_the_argument_and_passes_the_rest_on(self):
        class Model(nn.Module):
            def __init__(self):
                super().__init__()
                self.fc = nn.Linear(2, 3)

            def forward(self, x, *, labels):
                return self.fc(x).sum() + labels

        routed = gr.RoutedModule(Model(), {"fc": SPEC})
        routed(torch.ones(2, 2), labels=5, route_labels=torch.tensor([1, 1])).backward()
        assert routed.module.fc.bias.grad.tolist() == [0, 2, 0]
        assert routed.router.labels is None

    def test_a_training_pass_without_labels_is_refused(self):
        routed = gr.RoutedModule(mlp(), {"0": SPEC})
        with pytest.raises(UsageError, match="a training forward pass without route_labels would not be routed"):
            routed(torch.ones(2, 2))
        with routed.router(LABELS):
            assert bias_gradient(routed.module)[1] == 0
            routed(torch.ones(2, 2))

    def test_evaluation_needs_no_labels_and_is_the_model(self):
        model = mlp()
        routed = gr.RoutedModule(model, {"0": SPEC})
        with torch.no_grad():
            assert torch.equal(routed(torch.ones(2, 2)), model(torch.ones(2, 2)))
        assert torch.equal(routed.eval()(torch.ones(2, 2)), model(torch.ones(2, 2)))

    def test_lends_the_attributes_of_the_model(self):
        model = mlp()
        model.config = "config"
        routed = gr.RoutedModule(model, {"0": SPEC})
        assert routed.config == "config"
        with pytest.raises(AttributeError, match="nothing"):
            routed.nothing

    @pytest.mark.parametrize(
        "again", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))], ids=["deepcopy", "pickle"]
    )
    def test_copies_route_on_their_own(self, again):
        routed = gr.RoutedModule(mlp(), {"0": SPEC})
        twin = again(routed)
        for module in (routed, twin):
            module(torch.ones(2, 2), route_labels=LABELS).sum().backward()
        assert torch.equal(twin.module[0].bias.grad, routed.module[0].bias.grad)
        assert twin.module[0].bias.grad[1] == 0
