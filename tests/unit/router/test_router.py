"""`Router`: labels in flight, several sites and routers, ablation."""

import pytest
import torch
from torch import nn

import gradroute as gr
from gradroute.errors import LabelError, SpecError, UsageError
from unit.router.small import LABELS, SPEC, UNLABELED, bias_gradient, mlp


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

    @pytest.mark.parametrize("sites", [{}, None, {"0": 3}, {"0": [SPEC, 3]}])
    def test_sites_of_another_type_are_refused(self, sites):
        with pytest.raises(
            gr.RoutingError, match=r"sites must map|needs a RoutingSpec, a Site or several sites; got int"
        ):
            gr.Router(mlp(), sites)


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


QUIET = gr.RoutingSpec({"a": 0, "b": 1}, 4, shared=2, silent={"a": "b"})


@pytest.mark.filterwarnings("ignore::gradroute.UnroutedWarning")
class TestSilentUnits:
    def test_are_off_in_the_block_for_their_examples_at_every_site_and_nowhere_else(self):
        layer, x = nn.Linear(3, 4), torch.randn(3, 3)
        plain = layer(x)
        other = gr.RoutingSpec({"a": 3, "b": [0, 1, 2]}, 4, silent={"b": "a"})
        router = gr.Router(layer, {"": [gr.Site(QUIET), gr.Site(other, level="parameters")]})
        with router(torch.tensor([0, 1, -1])):  # two sites on one tensor: what either has off is off
            y = layer(x)
        off = torch.tensor([[False, True, False, False], [False, False, False, True], [False] * 4])
        assert torch.equal(y, torch.where(off, 0, plain))
        assert torch.equal(layer(x), plain)

    def test_may_be_written_to_in_place_behind_the_site(self):
        model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(inplace=True))
        with gr.Router(model, {"0": QUIET})(torch.tensor([0, 1])):
            y = model(torch.randn(2, 3))
            y.sum().backward()
        assert y[0, 1] == 0
        assert model[0].bias.grad[1] == y[1, 1].sign()

    def test_may_not_be_written_to_where_the_caller_holds_what_came_in(self):
        """In place, the plain model would change that, too; here it is another tensor."""
        site = nn.Identity()
        h = nn.Linear(3, 4)(torch.randn(2, 3))
        with gr.Router(site, {"": QUIET})(torch.tensor([0, 1])):
            y = site(h)
            with pytest.raises(RuntimeError, match="view"):
                y.relu_()
        assert y[0, 1] == 0
        assert y[1, 1] == h[1, 1] != 0

    def test_of_a_spec_of_one_unit_are_the_whole_tensor(self):
        whole = gr.RoutingSpec({"a": [], "b": 0}, 1, silent={"a": "b"})
        layer = nn.Sequential(nn.Linear(3, 5), nn.Tanh())
        with gr.Router(layer, {"": gr.Site(whole, level="parameters")})(torch.tensor([0, 1])):
            y = layer(torch.randn(2, 3))
        assert not y[0].any()
        assert y[1].all()


@pytest.mark.filterwarnings("ignore::gradroute.UnroutedWarning")
class TestUntaught:
    def test_units_are_ablated_by_that_name(self):
        layer, x = nn.Linear(3, 4), torch.randn(3, 3)
        router = gr.Router(layer, {"": QUIET})
        with router.ablated(gr.UNTAUGHT):
            assert layer(x).ne(0).all(0).tolist() == [True, True, True, False]
        with router.ablated("b", gr.UNTAUGHT):
            assert layer(x).ne(0).all(0).tolist() == [True, False, True, False]
        with pytest.raises(UsageError, match="ablating gradroute.UNTAUGHT would switch nothing off"):
            gr.Router(layer, {"": gr.RoutingSpec.one_per_label(4)}).ablated(gr.UNTAUGHT)
