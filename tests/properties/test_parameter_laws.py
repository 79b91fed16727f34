"""Level "parameters": own parameters learn by route, upstream learns whole. Every law for every kind of layer."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

import gradroute as gr
from gradroute.router import _layer_gradients as own_layers
from gradroute.testing import label_tensors, specs
from gradroute.unit_dims import unit_dims

WIDTH = 6  # of every routed tensor here
HARD = gr.RoutingSpec({"retain": slice(0, 3), "forget": slice(3, 5)}, WIDTH, shared=5)
SOFT = gr.RoutingSpec(
    {"retain": gr.Route(slice(0, 3), weight=0.5), "forget": gr.Route(slice(3, 5), weight=2.0, elsewhere=-0.25)}, WIDTH
)
WHOLE = gr.RoutingSpec({"retain": 0, "forget": []}, 1)  # the module learns from "retain" alone
FLAT, CHANNELS = (4, WIDTH), (4, WIDTH, 5, 7)


class Case:
    """A module, the shape of its input, and the dimension of its units."""

    def __init__(self, make: Callable[[], nn.Module], shape: tuple[int, ...], dim: int = -1) -> None:
        self.make, self.shape, self.dim = make, shape, dim

    def module(self) -> nn.Module:
        torch.manual_seed(0)
        return self.make()


KNOWN = {
    "Linear": Case(lambda: nn.Linear(WIDTH, WIDTH), FLAT),
    "Linear without bias, tokens": Case(lambda: nn.Linear(WIDTH, WIDTH, bias=False), (4, 3, WIDTH)),
    "Conv1D of transformers": Case(lambda: Conv1D(WIDTH, WIDTH), (4, 3, WIDTH)),
    "Conv1d, dilated": Case(lambda: nn.Conv1d(WIDTH, WIDTH, 2, dilation=2), (4, WIDTH, 9), 1),
    "Conv2d, strided and padded": Case(lambda: nn.Conv2d(WIDTH, WIDTH, 3, stride=2, padding=1), CHANNELS, 1),
    "Conv3d": Case(lambda: nn.Conv3d(WIDTH, WIDTH, 2, bias=False), (4, WIDTH, 3, 3, 3), 1),
    "LayerNorm": Case(lambda: affine(nn.LayerNorm(WIDTH)), (4, 3, WIDTH)),
    "LayerNorm without bias": Case(lambda: affine(nn.LayerNorm(WIDTH, bias=False)), FLAT),
    "RMSNorm": Case(lambda: affine(nn.RMSNorm(WIDTH)), FLAT),
}
WRITERS_ONLY = {
    "grouped Conv2d": Case(lambda: nn.Conv2d(WIDTH, WIDTH, 3, groups=3), CHANNELS, 1),
}
OTHERS = {
    "Conv2d, circular": Case(lambda: nn.Conv2d(WIDTH, WIDTH, 3, padding=1, padding_mode="circular"), CHANNELS, 1),
    "grouped Conv2d": WRITERS_ONLY["grouped Conv2d"],
    "BatchNorm2d": Case(lambda: affine(nn.BatchNorm2d(WIDTH)), CHANNELS, 1),
    "MLP with dropout": Case(
        lambda: nn.Sequential(nn.Linear(WIDTH, 9), nn.ReLU(), nn.Dropout(0.5), nn.Linear(9, WIDTH)), FLAT
    ),
    "weight norm": Case(lambda: nn.utils.parametrizations.weight_norm(nn.Linear(WIDTH, WIDTH)), FLAT),
    "ConvTranspose2d": Case(lambda: nn.ConvTranspose2d(WIDTH, WIDTH, 2), CHANNELS, 1),
}
SPECS = {"hard": HARD, "soft": SOFT, "whole": WHOLE}
ENDS = {"writers": ("output",), "readers": ("input",), "both": ("output", "input")}


def affine(norm: nn.Module) -> nn.Module:
    """A norm whose weight and bias are not all ones and zeros."""
    with torch.no_grad():
        for parameter in norm.parameters():
            parameter.uniform_(0.5, 1.5)
    return norm


def inputs(shape: tuple[int, ...], seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator), torch.tensor([0, 1, gr.UNLABELED, 1])[: shape[0]]


def sites(spec: gr.RoutingSpec, ends: tuple[str, ...], dim: int) -> dict[str, list[gr.Site]]:
    return {"": [gr.Site(spec, on=end, level="parameters", dim=dim) for end in ends]}


def run(call: Callable[[Tensor], Tensor], module: nn.Module, x: Tensor) -> tuple[Tensor, dict[str, Tensor | None]]:
    """The output, and the gradients of the parameters and of the input, of a loss that is not linear."""
    module.zero_grad()
    x = x.clone().requires_grad_()
    torch.manual_seed(1)  # of dropout
    y = call(x)
    (y.tanh() * torch.linspace(-1, 1, y.numel()).view_as(y)).sum().backward()
    return y, {"input": x.grad} | {name: parameter.grad for name, parameter in module.named_parameters()}


def oracle(module: nn.Module, x: Tensor, m: Tensor | float, n: Tensor | float) -> Tensor:
    """The module on fixed parameters, plus a term of value 0 by which they learn from the routed part."""
    fixed = {name: parameter.detach() for name, parameter in module.named_parameters()}
    buffers = {name: buffer.clone() for name, buffer in module.named_buffers()}
    seed = torch.random.get_rng_state()
    whole = torch.func.functional_call(module, fixed, x)
    torch.random.set_rng_state(seed)
    if isinstance(module, nn.LayerNorm | nn.RMSNorm):  # a unit's weight reads what it writes; a bias reads nothing
        of_weight = {name: fixed[name] for name in fixed if name != "weight"}
        own = torch.func.functional_call(module, of_weight, x.detach()) * m * n
        of_bias = {"weight": fixed["weight"]}
        own = own + torch.func.functional_call(module, of_bias, x.detach()) * m
    else:
        own = torch.func.functional_call(module, buffers, x.detach() * n) * m
    return whole + (own - own.detach())


def masks(spec: gr.RoutingSpec, ends: tuple[str, ...], labels: Tensor, ndim: int, dim: int) -> list[Tensor | float]:
    mask = spec.mask(labels).view(-1, *[1] * (ndim - 2), spec.width).movedim(-1, dim)
    return [mask if end in ends else 1.0 for end in ("output", "input")]


CASES = [
    pytest.param(case, ends, id=f"{name}-{which}")
    for name, case in (KNOWN | OTHERS).items()
    for which, ends in ENDS.items()
]


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
@pytest.mark.parametrize(("case", "ends"), CASES)
def test_own_parameters_learn_by_route_and_upstream_learns_whole(case: Case, ends, spec: gr.RoutingSpec) -> None:
    x, labels = inputs(case.shape)
    module, plain = case.module(), case.module()
    m, n = masks(spec, ends, labels, x.ndim, case.dim)
    _, expected = run(lambda x: oracle(plain, x, m, n), plain, x)
    router = gr.Router(module, sites(spec, ends, case.dim))
    with router(labels):
        y, found = run(module, module, x)
    router.remove()
    unrouted, whole = run(module, module, x)
    if not list(module.buffers()):
        assert torch.equal(y, unrouted), "the forward pass never changes"
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found["input"], whole["input"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("case", "ends"),
    [pytest.param(case, ends, id=f"{name}-{w}") for name, case in KNOWN.items() for w, ends in ENDS.items()]
    + [pytest.param(case, ("output",), id=name) for name, case in WRITERS_ONLY.items()],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_known_layers_are_bit_for_bit_unrouted_upstream_and_where_the_weight_is_one(case: Case, ends, dtype) -> None:
    x, labels = inputs(case.shape)
    x = x.to(dtype)
    module = case.module().to(dtype)
    y, whole = run(module, module, x)
    router = gr.Router(module, sites(HARD, ends, case.dim))
    with router(labels):
        routed, found = run(module, module, x)
    assert torch.equal(routed, y)
    assert torch.equal(found["input"], whole["input"])
    with router(torch.full_like(labels, gr.UNLABELED)):  # teaches all units
        routed, found = run(module, module, x)
    assert torch.equal(routed, y)
    assert all(torch.equal(found[name], whole[name]) for name in whole)


@pytest.mark.parametrize("case", KNOWN.values(), ids=KNOWN)
def test_units_off_the_route_get_exactly_zero_even_from_inf_and_nan(case: Case) -> None:
    x, _ = inputs(case.shape)
    module = case.module()
    with gr.Router(module, sites(HARD, ("output",), case.dim))(torch.zeros(4, dtype=torch.long)):
        y = module(x)
        gradient = torch.ones_like(y)
        gradient.select(case.dim, 3).fill_(torch.inf)
        gradient.select(case.dim, 4).fill_(torch.nan)
        y.backward(gradient)
    units = unit_dims(module, "output")
    for name, dim in units.items():
        rows = getattr(module, name).grad.movedim(dim, 0)
        assert not rows[3:5].any(), name
        assert rows[0].isfinite().all(), name


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 999), name=st.sampled_from(sorted(KNOWN)), ends=st.sampled_from(sorted(ENDS)))
def test_a_batch_learns_what_its_examples_learn_one_at_a_time(seed: int, name: str, ends: str) -> None:
    case = KNOWN[name]
    x, labels = inputs(case.shape, seed)
    module = case.module()
    router = gr.Router(module, sites(SOFT, ENDS[ends], case.dim))

    def gradients(x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        module.zero_grad()
        with router(labels):
            module(x).square().sum().backward()
        return {name: parameter.grad for name, parameter in module.named_parameters()}

    joined = gradients(x, labels)
    single = [gradients(x[i : i + 1], labels[i : i + 1]) for i in range(len(x))]
    total = {name: sum(each[name] for each in single) for name in joined}
    torch.testing.assert_close(joined, total, rtol=1e-4, atol=1e-4)


def test_several_sites_and_routers_on_one_module_multiply_and_come_off_one_by_one() -> None:
    x, labels = inputs(FLAT)
    others = labels.flip(0)
    module = KNOWN["Linear"].module()
    _, whole = run(module, module, x)
    first = gr.Router(module, sites(HARD, ("output",), -1))
    second = gr.Router(module, sites(SOFT, ("output",), -1))
    plain = KNOWN["Linear"].module()
    m = HARD.mask(labels) * SOFT.mask(others)
    _, expected = run(lambda x: oracle(plain, x, m, 1.0), plain, x)
    with first(labels), second(others):
        torch.testing.assert_close(run(module, module, x)[1], expected)
    first.remove()
    with second(others):
        _, found = run(module, module, x)
    torch.testing.assert_close(found["bias"], (whole_bias(plain, x) * SOFT.mask(others)).sum(0))
    second.remove()
    assert "forward" not in module.__dict__
    assert all(torch.equal(run(module, module, x)[1][name], whole[name]) for name in whole)


def whole_bias(module: nn.Module, x: Tensor) -> Tensor:
    """The gradient of each example's output."""
    y = module(x).detach().requires_grad_()
    (y.tanh() * torch.linspace(-1, 1, y.numel()).view_as(y)).sum().backward()
    return y.grad


@pytest.mark.parametrize("activations_first", [True, False])
def test_a_site_on_activations_of_the_same_module_masks_upstream_too(activations_first: bool) -> None:
    x, labels = inputs(FLAT)
    module = KNOWN["Linear"].module()
    on_activations, on_parameters = {"": gr.Site(HARD)}, sites(SOFT, ("output",), -1)
    order = [on_activations, on_parameters] if activations_first else [on_parameters, on_activations]
    routers = [gr.Router(module, each) for each in order]
    with routers[0](labels), routers[1](labels):
        _, found = run(module, module, x)
    grad = whole_bias(module, x) * HARD.mask(labels)
    torch.testing.assert_close(found["input"], grad @ module.weight)
    torch.testing.assert_close(found["bias"], (grad * SOFT.mask(labels)).sum(0))


@pytest.mark.parametrize("case", (KNOWN | OTHERS).values(), ids=KNOWN | OTHERS)
def test_derivatives_of_derivatives_are_those_of_a_weight_for_each_example(case: Case) -> None:
    """By hand for writers: units on the route run with the parameters, the others with fixed ones."""
    if any(isinstance(inner, nn.Dropout) for inner in case.module().modules()):
        case = Case(lambda make=case.make: make().eval(), case.shape, case.dim)
    x, labels = inputs(case.shape)
    second = []
    for routed in (True, False):
        module = case.module()
        mask = masks(HARD, ("output",), labels, x.ndim, case.dim)[0]

        def by_hand(x: Tensor, module=module, mask=mask) -> Tensor:
            fixed = {name: p.detach() for name, p in module.named_parameters()}
            return torch.where(mask != 0, module(x), torch.func.functional_call(module, fixed, x))

        leaf = x.clone().requires_grad_()
        if routed:
            with gr.Router(module, sites(HARD, ("output",), case.dim))(labels):
                y = module(leaf)
        else:
            y = by_hand(leaf)
        gradients = torch.autograd.grad(y.square().sum(), [leaf, *module.parameters()], create_graph=True)
        sum(gradient.square().sum() for gradient in gradients).backward()
        second.append({"input": leaf.grad} | {name: p.grad for name, p in module.named_parameters()})
    torch.testing.assert_close(*second, rtol=1e-3, atol=1e-4)


def test_running_statistics_count_a_batch_once() -> None:
    x, labels = inputs(CHANNELS)
    plain = OTHERS["BatchNorm2d"].module()
    for ends in ENDS.values():
        module = copy.deepcopy(plain)
        with gr.Router(module, sites(HARD, ends, 1))(labels):
            module(x)
        once = copy.deepcopy(plain)
        once(x)
        torch.testing.assert_close(dict(module.named_buffers()), dict(once.named_buffers()))


def test_the_fast_way_is_taken_for_known_layers(monkeypatch) -> None:
    """One forward and one backward: the slow way would show as another number of products."""
    monkeypatch.setattr(own_layers.Layer, "composed", None)
    monkeypatch.setattr(own_layers._Norm, "composed", None)
    for case in KNOWN.values():
        x, labels = inputs(case.shape)
        module = case.module()
        with gr.Router(module, sites(HARD, ("output", "input"), case.dim))(labels):
            run(module, module, x)


@given(specs(max_width=1), st.data(), st.integers(0, 2**16))
@settings(max_examples=60)
def test_a_whole_tensor_is_routed_as_one_whose_units_are_all_alike(spec, data, seed) -> None:
    """Bit for bit: at both levels and ends, for each example or token, for layers, modules and embeddings."""
    name, on = data.draw(st.sampled_from([("0", "output"), ("1", "output"), ("1", "input"), ("2", "output")]))
    level = data.draw(st.sampled_from(["activations", "parameters"]))
    labels = data.draw(label_tensors(spec, data.draw(st.sampled_from([(3,), (3, 4)]))))
    tokens = torch.randint(0, 5, (3, 4))
    found = []
    for dim in (None, -1):
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Embedding(5, 6), nn.Sequential(nn.Linear(6, 6), nn.Tanh()), nn.Linear(6, 6))
        site = gr.Site(spec if dim is None else spec.repeat(6), on=on, level=level, dim=dim)
        router = gr.Router(model, {name: site})
        with router(labels):
            y = model(tokens)
            y.square().sum().backward()
        found.append([y.detach(), *(parameter.grad for parameter in model.parameters())])
    assert all(torch.equal(*pair) for pair in zip(*found, strict=True))
