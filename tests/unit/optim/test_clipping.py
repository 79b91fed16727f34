"""`clip_grad_norm_per_route_`: each route by its own norm, out of reach of the others' gradients."""

import copy

import pytest
import torch
from torch import nn

import gradroute as gr
from gradroute.errors import SiteError, UsageError
from gradroute.optim import clip_grad_norm_per_route_

# Units: 0 and 1 of a alone, 2 of b alone, 3 of both, 4 and 5 of all, 6 of nobody.
SPEC = gr.RoutingSpec({"a": [0, 1, 3], "b": [2, 3], "c": []}, 7, shared=[4, 5])
A, B, AB, ALL, NONE = ("a",), ("b",), ("a", "b"), ("a", "b", "c"), ()
ROWS = {A: [0, 1], B: [2], AB: [3], ALL: [4, 5], NONE: [6]}
NORM_TYPES = pytest.mark.parametrize("norm_type", [1.0, 2.0, 3.0, float("inf"), "inf"])


def model_with_gradients(**options):
    model = nn.Sequential(nn.Linear(4, 7, **options), nn.Tanh(), nn.Linear(7, 3, **options))
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    return model


def clip_by_hand(groups, max_norm, norm_type):
    """What torch does to each group of gradients by itself; and its norm."""
    found = {}
    for name, gradients in groups.items():
        parameters = [nn.Parameter(gradient.clone()) for gradient in gradients]
        for parameter in parameters:
            parameter.grad = parameter.detach().clone()
        norm = nn.utils.clip_grad_norm_(parameters, max_norm, norm_type)
        found[name] = norm, [parameter.grad for parameter in parameters]
    return found


def rows_of(model):
    """The gradients of each group, where only the first layer is routed."""
    first, rest = model[0], list(model[2].parameters())
    groups = {name: [first.weight.grad[rows], first.bias.grad[rows]] for name, rows in ROWS.items()}
    groups[ALL] += [parameter.grad for parameter in rest]
    return groups


@NORM_TYPES
@pytest.mark.parametrize("max_norm", [0.1, 2.0, 100.0])
def test_clips_each_group_as_torch_would_by_itself(norm_type, max_norm):
    model = model_with_gradients()
    router = gr.Router(model, {"0": SPEC})
    expected = clip_by_hand(rows_of(model), max_norm, norm_type)
    norms = clip_grad_norm_per_route_(router, max_norm, norm_type)
    assert next(iter(norms)) == ALL
    assert set(norms) == set(ROWS)
    clipped = rows_of(model)
    for name, (norm, gradients) in expected.items():
        torch.testing.assert_close(norms[name], norm)
        torch.testing.assert_close(clipped[name], gradients)


@NORM_TYPES
def test_with_one_route_is_torchs_own(norm_type):
    model = model_with_gradients()
    other = copy.deepcopy(model)
    for mine, its in zip(model.parameters(), other.parameters(), strict=True):
        its.grad = mine.grad.clone()
    router = gr.Router(model, {"0": gr.RoutingSpec({"all": slice(None)}, 7)})
    norms = clip_grad_norm_per_route_(router, 1.0, norm_type)
    torch.testing.assert_close(norms, {("all",): nn.utils.clip_grad_norm_(other.parameters(), 1.0, norm_type)})
    for mine, its in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, its.grad)


@pytest.mark.parametrize("spike", [1000.0, float("inf"), float("nan")])
@pytest.mark.parametrize("level", ["activations", "parameters"])
def test_a_spike_in_one_route_leaves_the_others_bit_for_bit_as_they_would_be(level, spike):
    model = model_with_gradients()
    router = gr.Router(model, {"0": gr.Site(SPEC, level=level)})
    kept = [parameter.grad.clone() for parameter in model.parameters()]
    clip_grad_norm_per_route_(router, 0.5)
    calm = rows_of(model)
    for parameter, gradient in zip(model.parameters(), kept, strict=True):
        parameter.grad = gradient
    model[0].weight.grad[ROWS[A]] *= spike
    norms = clip_grad_norm_per_route_(router, 0.5)
    for name, gradients in rows_of(model).items():
        assert all(map(torch.equal, gradients, calm[name])) is (name != A)
    assert norms[A].isfinite() == (spike == 1000.0)
    assert not norms[A] < 100


def test_what_is_below_the_norm_is_not_touched():
    model = model_with_gradients()
    before = [parameter.grad.clone() for parameter in model.parameters()]
    clip_grad_norm_per_route_(gr.Router(model, {"0": SPEC}), 1e6)
    assert all(torch.equal(parameter.grad, old) for parameter, old in zip(model.parameters(), before, strict=True))


def test_entries_with_a_row_and_a_column_are_of_the_labels_that_may_teach_both():
    spec = gr.RoutingSpec({"a": [0], "b": [1]}, 3, shared=2)
    model = nn.Linear(3, 3, bias=False)
    sites = {"": [gr.Site(spec, level="parameters"), gr.Site(spec, on="input", level="parameters")]}
    router = gr.Router(model, sites)
    model.weight.grad = torch.tensor([[1.0, 2, 4], [8, 16, 32], [64, 128, 256]])
    norms = clip_grad_norm_per_route_(router, 1e9, norm_type=1)
    expected = {("a", "b"): 256.0, ("a",): 1 + 4 + 64, ("b",): 16 + 32 + 128, (): 2 + 8}
    assert {name: norm.item() for name, norm in norms.items()} == expected
    clip_grad_norm_per_route_(router, 8.0, norm_type=float("inf"))
    grad = torch.tensor([[0.125, 2, 0.5], [8, 1, 2], [8, 8, 8]])
    torch.testing.assert_close(model.weight.grad, grad)


@pytest.mark.parametrize("first", ["output", "input"])
def test_sites_on_rows_and_columns_may_come_in_any_order(first):
    rows, columns = gr.RoutingSpec({"a": [0], "b": [1]}, 3, shared=2), gr.RoutingSpec({"a": 0, "b": 1}, 2)
    model = nn.Linear(2, 3, bias=False)
    ends = [gr.Site(rows, level="parameters"), gr.Site(columns, on="input", level="parameters")]
    model.weight.grad = torch.tensor([[1.0, 2], [4, 8], [16, 32]])
    router = gr.Router(model, {"": ends if first == "output" else ends[::-1]})
    norms = clip_grad_norm_per_route_(router, 1e9, norm_type=1)
    assert {name: norm.item() for name, norm in norms.items()} == {("a", "b"): 0, ("a",): 17, ("b",): 40, (): 6}


def test_rows_that_write_and_columns_that_read_are_of_the_same_groups():
    model = model_with_gradients()
    sites = {"0": gr.Site(SPEC, level="parameters"), "2": gr.Site(SPEC, on="input", level="parameters")}
    first, second = model[0], model[2]

    def by_group():
        groups = {
            name: [first.weight.grad[units], first.bias.grad[units], second.weight.grad[:, units]]
            for name, units in ROWS.items()
        }
        groups[ALL].append(second.bias.grad)  # reads nothing: of all
        return groups

    expected = clip_by_hand(by_group(), 0.5, 2.0)
    norms = clip_grad_norm_per_route_(gr.Router(model, sites), 0.5)
    for name, gradients in by_group().items():
        torch.testing.assert_close((norms[name], gradients), expected[name])


def test_a_shared_parameter_is_of_whoever_teaches_it_anywhere():
    one = gr.RoutingSpec({"a": [0], "b": [1, 2]}, 3)
    other = gr.RoutingSpec({"a": [0, 1], "b": [2]}, 3)
    model = nn.ModuleList(nn.Linear(3, 3, bias=False) for _ in range(2))
    model[1].weight = model[0].weight
    model[0].weight.grad = torch.diag(torch.tensor([1.0, 2, 4]))
    norms = clip_grad_norm_per_route_(gr.Router(model, {"0": one, "1": other}), 1e9, norm_type=1)
    assert {name: norm.item() for name, norm in norms.items()} == {("a", "b"): 2.0, ("a",): 1.0, ("b",): 4.0}
    norms = clip_grad_norm_per_route_(gr.Router(model, {"0": one}), 1e9, norm_type=1)
    assert norms[("a", "b")] == 7.0  # the other module is not routed: all labels teach it


def test_a_whole_module_of_one_unit_is_one_group():
    one = gr.RoutingSpec({"a": 0, "b": ()}, 1)
    model = model_with_gradients()
    router = gr.Router(model, {"2": gr.Site(one, level="parameters")})
    own = [parameter.grad.clone() for parameter in model[2].parameters()]
    expected = nn.utils.get_total_norm(own)
    norms = clip_grad_norm_per_route_(router, 0.5)
    torch.testing.assert_close(norms[A], expected)
    torch.testing.assert_close(model[2].weight.grad, own[0] * 0.5 / expected)


def test_groups_without_gradients_have_norm_0_and_nothing_becomes_nan():
    model = model_with_gradients()
    router = gr.Router(model, {"0": SPEC})
    model[2].zero_grad()
    model[0].weight.grad.zero_()
    model[0].bias.grad = None
    for max_norm in (1.0, 0.0):
        norms = clip_grad_norm_per_route_(router, max_norm)
        assert all(norm == 0 for norm in norms.values())
        assert torch.equal(model[0].weight.grad, torch.zeros(7, 4))
    model.zero_grad()
    assert all(norm == 0 for norm in clip_grad_norm_per_route_(router, 1.0).values())


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_gradients_keep_their_dtype_and_norms_are_of_the_widest(dtype):
    model = model_with_gradients(dtype=dtype)
    norms = clip_grad_norm_per_route_(gr.Router(model, {"0": SPEC}), 0.5)
    assert all(parameter.grad.dtype == dtype for parameter in model.parameters())
    assert {norm.dtype for norm in norms.values()} == {torch.promote_types(dtype, torch.float32)}
    for gradients in rows_of(model).values():
        assert torch.cat([gradient.flatten() for gradient in gradients]).float().norm() <= 0.51


def test_a_norm_that_is_not_finite_raises_where_asked_to_and_changes_nothing():
    model = model_with_gradients()
    router = gr.Router(model, {"0": SPEC})
    model[0].bias.grad[0] = torch.inf
    before = [parameter.grad.clone() for parameter in model.parameters()]
    with pytest.raises(RuntimeError, match=r"order 2.0 of the gradients of the routes \('a',\) is not finite"):
        clip_grad_norm_per_route_(router, 1.0, error_if_nonfinite=True)
    assert all(torch.equal(parameter.grad, old) for parameter, old in zip(model.parameters(), before, strict=True))


def test_many_labels_of_few_routes_are_few_groups():
    spec = gr.RoutingSpec({label: [label % 2] for label in range(1000)}, 3)
    model = nn.Linear(2, 3)
    model.weight.grad, model.bias.grad = torch.ones(3, 2), torch.ones(3)
    norms = clip_grad_norm_per_route_(gr.Router(model, {"": spec}), 1.0)
    assert len(norms) == 4
    assert set(norms) == {tuple(range(1000)), tuple(range(0, 1000, 2)), tuple(range(1, 1000, 2)), ()}


class TestRefuses:
    def test_sites_of_different_labels(self):
        model = model_with_gradients()
        router = gr.Router(model, {"0": SPEC, "2": gr.RoutingSpec({"x": 0}, 3)})
        with pytest.raises(UsageError, match="the sites '0' and '2' name different labels.*a router for each"):
            clip_grad_norm_per_route_(router, 1.0)

    def test_units_without_parameters_unless_named_otherwise(self):
        model = model_with_gradients()
        router = gr.Router(model, {"0": SPEC, "2": gr.Site(SPEC, on="input")})
        with pytest.raises(SiteError, match="site '2': no parameters are known"):
            clip_grad_norm_per_route_(router, 1.0)
        assert set(clip_grad_norm_per_route_(router, 1.0, sites=["0"])) == set(ROWS)

    @pytest.mark.parametrize("norm_type", [0.0, -1.0, float("-inf"), float("nan")])
    def test_norms_that_do_not_add_up(self, norm_type):
        router = gr.Router(model_with_gradients(), {"0": SPEC})
        with pytest.raises(UsageError, match="norm_type must be positive.*got"):
            clip_grad_norm_per_route_(router, 1.0, norm_type)

    def test_sparse_gradients(self):
        model = nn.Embedding(3, 7, sparse=True)
        model(torch.tensor([1])).sum().backward()
        with pytest.raises(UsageError, match="layout torch.sparse_coo: only plain, dense gradients"):
            clip_grad_norm_per_route_(gr.Router(model, {"": SPEC}), 1.0)

    def test_gradients_of_other_classes_such_as_distributed_ones(self):
        model = model_with_gradients()
        model[2].weight.grad = model[2].weight.grad.as_subclass(type("Blocks", (torch.Tensor,), {}))
        with pytest.raises(UsageError, match="a gradient is a Blocks of layout"):
            clip_grad_norm_per_route_(gr.Router(model, {"0": SPEC}), 1.0)

    def test_a_router_that_was_removed(self):
        router = gr.Router(model_with_gradients(), {"0": SPEC})
        router.remove()
        with pytest.raises(UsageError, match="was removed"):
            clip_grad_norm_per_route_(router, 1.0)
