"""Level "parameters": what is refused, what comes off, whole modules, heads, and where a mask could be lost."""

import warnings
from contextlib import nullcontext

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

import gradroute as gr
from gradroute.errors import SiteError, UsageError
from gradroute.optim._parameter_units import places_of
from gradroute.router import _layer_gradients as layer_gradients
from gradroute.router._parameter_level import OwnForward

SPEC = gr.RoutingSpec.one_per_label(4)
LABELS = torch.tensor([0, 2])


def own(spec: gr.RoutingSpec = SPEC, **options: object) -> gr.Site:
    return gr.Site(spec, level="parameters", **options)


class TestMisuse:
    def test_a_module_without_parameters_is_refused(self) -> None:
        with pytest.raises(gr.errors.SiteError, match="a ReLU has none"):
            gr.Router(nn.Sequential(nn.Linear(3, 4), nn.ReLU()), {"1": own()})

    def test_the_input_of_an_embedding_is_refused(self) -> None:
        with pytest.raises(gr.errors.SiteError, match="indices, not units"):
            gr.Router(nn.Embedding(5, 4), {"": own(on="input")})

    def test_a_refused_router_leaves_nothing_behind(self) -> None:
        model = nn.Sequential(nn.Linear(3, 4), nn.ReLU())
        with pytest.raises(gr.errors.SiteError):
            gr.Router(model, {"0": own(), "1": own()})
        assert "forward" not in model[0].__dict__

    @pytest.mark.parametrize("on", ["output", "input"])
    def test_a_spec_of_another_width_names_the_site(self, on: str) -> None:
        model = nn.Sequential(nn.Linear(7, 7))
        with gr.Router(model, {"0": own(on=on)})(LABELS), pytest.raises(gr.RoutingError, match="site '0': .*4 units"):
            model(torch.ones(2, 7))

    def test_labels_that_do_not_fit_raise_in_the_forward_pass(self) -> None:
        model = nn.Linear(3, 4)
        with (
            gr.Router(model, {"": own()})(torch.tensor([0, 1, 2])),
            pytest.raises(gr.errors.LabelError, match="expected"),
        ):
            model(torch.ones(2, 3))

    def test_an_input_site_on_a_module_of_several_outputs_says_what_to_do(self) -> None:
        model = nn.GRU(4, 4, batch_first=True)
        with (
            gr.Router(model, {"": own(on="input")})(LABELS),
            pytest.raises(gr.errors.SiteError, match="returns a tuple. Put sites on the layers inside"),
        ):
            model(torch.ones(2, 3, 4))

    def test_dropout_in_a_transform_says_what_to_do(self) -> None:
        """Two runs inside of a transform would draw different numbers; compiled code goes back to eager there."""
        model = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5))
        with (
            gr.Router(model, {"": own()})(LABELS),
            pytest.raises(gr.errors.UsageError, match="draws random numbers .dropout that is on"),
        ):
            torch.func.grad(lambda x: model(x).sum())(torch.ones(2, 4))


def test_an_embedding_learns_by_route() -> None:
    model = nn.Embedding(5, 4)
    with gr.Router(model, {"": own()})(LABELS):
        model(torch.tensor([1, 3])).sum().backward()
    assert model.weight.grad.nonzero().tolist() == [[1, 0], [3, 2]]


def test_an_embedding_as_a_whole() -> None:
    model = nn.Embedding(5, 4)
    one = gr.RoutingSpec({"retain": 0, "forget": []}, 1)
    with gr.Router(model, {"": own(one)})(torch.tensor([0, 1])):
        model(torch.tensor([1, 3])).sum().backward()
    assert model.weight.grad.nonzero()[:, 0].unique().tolist() == [1], "the example of label 0 learns, and it alone"


@pytest.mark.parametrize("kind", ["known", "other"])
def test_a_spec_of_one_unit_routes_a_module_as_a_whole(kind: str) -> None:
    """Two experts in one mixed batch: each learns from its own examples, and what is upstream from all."""
    torch.manual_seed(0)
    make = (lambda: nn.Linear(3, 4)) if kind == "known" else (lambda: nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 4)))
    experts = nn.ModuleDict({"retain": make(), "forget": make()})
    names = list(experts)
    sites = {name: own(gr.RoutingSpec({label: [0] if label == name else [] for label in names}, 1)) for name in names}
    x = torch.randn(2, 3, requires_grad=True)
    with gr.Router(experts, sites)(torch.tensor([0, 1])):
        sum(expert(x) for expert in experts.values()).square().sum().backward()
    for i, name in enumerate(names):
        leaf = x.detach()[i : i + 1]
        output = sum(expert(leaf) for expert in experts.values())
        expected = torch.autograd.grad(output.square().sum(), list(experts[name].parameters()))
        torch.testing.assert_close([p.grad for p in experts[name].parameters()], list(expected))
    assert x.grad.all()


def test_heads_by_repeat() -> None:
    heads = gr.RoutingSpec({"retain": [0, 1], "forget": 2}, 3).repeat(4)
    model = nn.Linear(5, 12)
    with gr.Router(model, {"": own(heads)})(torch.tensor([1])):
        model(torch.ones(1, 5)).sum().backward()
    assert model.bias.grad.nonzero().flatten().tolist() == [8, 9, 10, 11]


def test_users_hooks_see_the_routed_output_and_stay() -> None:
    model = nn.Linear(3, 4)
    seen = []
    model.register_forward_hook(lambda module, args, output: seen.append(output))
    model.register_full_backward_hook(lambda module, grad_input, grad_output: seen.append(grad_output[0]))
    router = gr.Router(model, {"": own()})
    with router(LABELS):
        output = model(torch.ones(2, 3, requires_grad=True))
        output.sum().backward()
    assert torch.equal(seen[0], output)
    assert torch.equal(seen[1], torch.ones(2, 4))  # the whole gradient: only what is made of it is masked
    router.remove()
    model(torch.ones(2, 3, requires_grad=True)).sum().backward()
    assert len(seen) == 4


def test_a_forward_that_somebody_else_put_there_is_run_and_put_back() -> None:
    model = nn.Linear(3, 4)
    plain = model.forward
    model.forward = lambda x: plain(x) * 2
    theirs = model.forward
    router = gr.Router(model, {"": own()})
    with router(LABELS):
        output = model(torch.ones(2, 3))
        output.sum().backward()
    torch.testing.assert_close(output, plain(torch.ones(2, 3)) * 2)
    torch.testing.assert_close(model.bias.grad, 2 * SPEC.mask(LABELS).sum(0))
    router.remove()
    assert model.forward is theirs


def test_the_signature_stays_readable() -> None:
    import inspect

    model = nn.Linear(3, 4)
    before = inspect.signature(model.forward)
    router = gr.Router(model, {"": own()})
    assert inspect.signature(model.forward) == before
    assert isinstance(model.forward, OwnForward)
    router.remove()
    assert "forward" not in model.__dict__


def test_a_keyword_argument_is_routed_too() -> None:
    model = nn.Linear(3, 4)
    with gr.Router(model, {"": own()})(LABELS):
        model(input=torch.ones(2, 3)).sum().backward()
    assert torch.equal(model.bias.grad, SPEC.mask(LABELS).sum(0))


def test_a_training_pass_without_labels_warns() -> None:
    model = nn.Linear(3, 4)
    router = gr.Router(model, {"": own()})
    with pytest.warns(gr.UnroutedWarning, match="no labels set"):
        model(torch.ones(2, 3))
    router.remove()


class TestNamedParameters:
    """A site on a bias alone costs a sum, and loses nothing where the names or what they stand for change."""

    SPEC = gr.RoutingSpec.one_per_label(3)
    LABELS = torch.tensor([0, 1])

    def routed(self, layer, *names, **options):
        site = gr.Site(self.SPEC, level="parameters", parameters=names, **options)
        return gr.Router(layer, {"": site})

    def test_the_weight_is_multiplied_once_and_where_it_is_frozen_not_at_all(self, monkeypatch):
        layer = nn.Linear(2, 3)
        router = self.routed(layer, "bias")
        calls = []
        for method in ("grad_own", "grad_bias", "composed"):
            known = getattr(layer_gradients._Linear, method)

            def counted(self, *args, method=method, known=known):
                calls.append((method, args[-1] is None))
                return known(self, *args)

            monkeypatch.setattr(layer_gradients._Linear, method, counted)
        for frozen in (False, True):
            layer.weight.requires_grad_(not frozen)
            calls.clear()
            with router(self.LABELS):
                layer(torch.ones(2, 2)).sum().backward()
            assert calls == [("grad_bias", False)] if frozen else [("grad_own", True), ("grad_bias", False)]

    def test_whole_where_they_are_not_named_bit_for_bit(self):
        layer = nn.Linear(2, 3)
        x = torch.randn(2, 2)
        layer(x).square().sum().backward()
        whole = layer.weight.grad.clone()
        layer.zero_grad()
        with self.routed(layer, "bias")(self.LABELS):
            y = layer(x)
            y.square().sum().backward()
        assert torch.equal(layer.weight.grad, whole)
        assert torch.equal(layer.bias.grad, (2 * y.detach() * self.SPEC.mask(self.LABELS)).sum(0))

    def test_two_sites_of_different_parameters_multiply_where_they_meet(self):
        for make in (lambda: nn.Linear(2, 3), lambda: nn.Sequential(nn.Linear(2, 3))):
            module = make()
            prefix = "0." if isinstance(module, nn.Sequential) else ""
            both = [
                gr.Site(self.SPEC, level="parameters"),
                gr.Site(gr.RoutingSpec({0: 0, 1: []}, 3), level="parameters", parameters=(f"{prefix}bias",)),
            ]
            with gr.Router(module, {"": both})({"": self.LABELS}):
                module(torch.ones(2, 2)).sum().backward()
            assert module.get_parameter(f"{prefix}bias").grad.tolist() == [1, 0, 0]
            assert module.get_parameter(f"{prefix}weight").grad.tolist() == [[1, 1], [1, 1], [0, 0]]

    def test_two_sites_of_different_parameters_are_refused_where_a_module_must_run_for_each(self):
        module = nn.Sequential(nn.Linear(2, 3))
        sites = [gr.Site(self.SPEC, level="parameters", parameters=(name,)) for name in ("0.bias", "0.weight")]
        x = torch.ones(2, 2, requires_grad=True)
        with gr.Router(module, {"": sites})(self.LABELS):
            loss = module(x).square().sum()
            with pytest.raises(UsageError, match="route different parameters of one Sequential"):
                torch.autograd.grad(loss, x, create_graph=True)

    def test_a_weight_that_is_computed_of_what_is_named_is_routed_as_that_is(self):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            layer = nn.utils.weight_norm(nn.Linear(2, 3))
        x = torch.randn(2, 2)
        layer(x).sum().backward()
        whole = {name: p.grad.clone() for name, p in layer.named_parameters()}
        layer.zero_grad()
        router = self.routed(layer, "weight_v", "weight_g")
        with router(self.LABELS):
            layer(x).sum().backward()
        assert layer.weight_g.grad[0] != 0
        assert layer.weight_g.grad[2] == 0
        assert not layer.weight_v.grad[2].any()
        assert torch.equal(layer.bias.grad, whole["bias"])
        router.remove()
        layer.zero_grad()
        with self.routed(layer, "bias")(self.LABELS):
            layer(x).sum().backward()
        for name in ("weight_v", "weight_g"):
            torch.testing.assert_close(layer.get_parameter(name).grad, whole[name])
        assert layer.bias.grad.tolist() == [1, 1, 0]

    def test_what_a_pruned_weight_is_computed_of_is_routed_as_that_is(self):
        layer = nn.Linear(2, 3)
        prune.custom_from_mask(layer, "weight", torch.tensor([[1, 0], [1, 1], [1, 1]]))
        with self.routed(layer, "weight_orig")(self.LABELS):
            layer(torch.ones(2, 2)).sum().backward()
        assert layer.weight_orig.grad.tolist() == [[1, 0], [1, 1], [0, 0]]
        assert layer.bias.grad.tolist() == [2, 2, 2]

    def test_a_weight_that_is_pruned_after_the_router_was_made_still_learns_whole(self):
        layer = nn.Linear(2, 3)
        router = self.routed(layer, "bias")
        prune.custom_from_mask(layer, "weight", torch.tensor([[1, 0], [1, 1], [1, 1]]))
        with router(self.LABELS):
            layer(torch.ones(2, 2)).sum().backward()
        assert layer.weight_orig.grad.tolist() == [[2, 0], [2, 2], [2, 2]]
        assert layer.bias.grad.tolist() == [1, 1, 0]

    def test_a_weight_that_is_computed_of_what_is_named_and_of_others_is_refused(self):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            layer = nn.utils.weight_norm(nn.Linear(2, 3))
        router = self.routed(layer, "weight_v")
        with router(self.LABELS), pytest.raises(UsageError, match="and of others that it does"):
            layer(torch.ones(2, 2))
        with pytest.raises(SiteError, match="no parameters are known to belong to its units"):
            places_of(router, None)

    def test_a_parameter_that_is_gone_is_refused(self):
        layer = nn.Linear(2, 3)
        router = self.routed(layer, "bias")
        nn.utils.parametrize.register_parametrization(layer, "bias", nn.Identity())
        with pytest.raises(UsageError, match="'bias' is no parameter of this .* any more"), router(self.LABELS):
            layer(torch.ones(2, 2))

    def test_a_parameter_in_another_list_of_the_module_is_found_for_each_choice_of_names(self):
        class Past(nn.Module):
            def __init__(self):
                super().__init__()
                self.scale, self.shift = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
                self.all = [self.scale]

            def forward(self, x):
                return x * self.all[0] + self.shift

        module = Past()
        first = self.routed(module, "shift")
        with first(self.LABELS):
            module(torch.ones(2, 3)).sum().backward()
        assert module.shift.grad.tolist() == [1, 1, 0]
        second = self.routed(module, "scale")
        with first(self.LABELS), second(self.LABELS), pytest.raises(UsageError, match="by another reference"):
            module(torch.ones(2, 3))

    def test_units_are_no_label_s_own_so_that_none_are_switched_off(self):
        layer = nn.Linear(2, 3)
        router = self.routed(layer, "bias")
        with pytest.raises(UsageError, match="would switch nothing off"):
            router.ablated(0)
        both = gr.Router(layer, {"": [gr.Site(self.SPEC, level="parameters"), *router.sites[""]]})
        with both.ablated(0), torch.no_grad():
            assert layer(torch.ones(1, 2))[0, 0] == 0

    def test_labels_may_come_late(self):
        for module, prefix in ((nn.Linear(2, 3), ""), (nn.Sequential(nn.Linear(2, 3)), "0.")):
            with self.routed(module, f"{prefix}bias").deferred() as later:
                loss = module(torch.ones(2, 2)).sum()
            later.set(self.LABELS)
            loss.backward()
            assert module.get_parameter(f"{prefix}bias").grad.tolist() == [1, 1, 0]
            assert module.get_parameter(f"{prefix}weight").grad.tolist() == [[2, 2]] * 3

    @pytest.mark.parametrize("learns", ["weight", "bias"])
    def test_a_module_that_is_gone_around_is_noticed_by_what_is_named(self, learns):
        layer = nn.Linear(2, 3)
        router = self.routed(layer, "bias")
        with router(self.LABELS):
            layer(torch.ones(2, 2)).sum().backward()
        expected = pytest.warns(gr.UnroutedWarning, match="got gradients") if learns == "bias" else nullcontext()
        with expected, router(self.LABELS):
            layer.get_parameter(learns).sum().backward()
