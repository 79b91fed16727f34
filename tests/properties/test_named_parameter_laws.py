"""A site that names parameters routes these and no others: each law against one example at a time."""

from __future__ import annotations

import contextlib

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers.pytorch_utils import Conv1D

import gradroute as gr
from gradroute.testing import assert_routed, label_tensors, oracle_mask, specs

WIDTH, BATCH = 4, 3


class Own(nn.Module):
    """Of an unknown kind, with parameters of its own and of modules inside it."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(WIDTH, 5), nn.Tanh(), nn.Linear(5, WIDTH))
        self.scale, self.shift = nn.Parameter(torch.rand(WIDTH) + 0.5), nn.Parameter(torch.randn(WIDTH))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(self.inner(x) * self.scale) + self.shift


class Tied(nn.Module):
    """One weight under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.b.weight = self.a.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(torch.tanh(self.a(x)))


def affine(norm: nn.Module) -> nn.Module:
    with torch.no_grad():
        for parameter in norm.parameters():
            parameter.uniform_(0.5, 1.5)
    return norm


FLAT, IMAGES = (BATCH, WIDTH), (BATCH, WIDTH, 3, 3)
MODULES = {
    "linear": (lambda: nn.Linear(WIDTH, WIDTH), FLAT, -1),
    "transposed": (lambda: Conv1D(WIDTH, WIDTH), FLAT, -1),
    "convolution": (lambda: nn.Conv2d(WIDTH, WIDTH, 2), IMAGES, 1),
    "norm": (lambda: affine(nn.LayerNorm(WIDTH)), FLAT, -1),
    "circular": (lambda: nn.Conv2d(WIDTH, WIDTH, 2, padding=1, padding_mode="circular"), IMAGES, 1),
    "own": (Own, FLAT, -1),
    "tied": (Tied, FLAT, -1),
    "weight norm": (lambda: nn.utils.parametrizations.weight_norm(nn.Linear(WIDTH, WIDTH)), FLAT, -1),
}
KNOWN = ("linear", "transposed", "convolution", "norm")


def made(name: str):
    torch.manual_seed(0)
    make, shape, dim = MODULES[name]
    return make(), torch.randn(shape), dim


def learned(module: nn.Module, x: torch.Tensor, block=None) -> dict[str, torch.Tensor]:
    module.zero_grad()
    x = x.clone().requires_grad_()
    with block or contextlib.nullcontext():
        y = module(x)
        (y.tanh() * torch.linspace(-1, 1, y.numel()).view_as(y)).sum().backward()
    return {"input": x.grad} | {name: p.grad for name, p in module.named_parameters()}


def one_at_a_time(module, x, units, dim, names):
    """By the definition: example and unit by unit, a gradient of the whole batch, weighted for the named ones."""
    found = {}
    x = x.clone().requires_grad_()
    y = module(x)
    upstream = torch.autograd.grad(
        (y.tanh() * torch.linspace(-1, 1, y.numel()).view_as(y)).sum(), y, retain_graph=True
    )[0]
    every = dict(module.named_parameters(remove_duplicate=False))
    for name, parameter in module.named_parameters():
        routed = any(every[other] is parameter for other in names)
        total = torch.zeros_like(parameter)
        for i in range(len(x)):
            for unit in range(WIDTH):
                chosen = torch.zeros_like(y)
                index = [slice(None)] * y.ndim
                index[0], index[dim % y.ndim] = i, unit
                chosen[tuple(index)] = upstream[tuple(index)]
                weight = units[i, unit] if routed else 1.0
                total += weight * torch.autograd.grad(y, parameter, chosen, retain_graph=True)[0]
        found[name] = total
    return found


@pytest.mark.parametrize("name", MODULES)
@settings(max_examples=10)
@given(data=st.data())
def test_named_parameters_learn_by_route_and_all_others_whole(name, data):
    module, x, dim = made(name)
    spec = data.draw(specs(WIDTH, silent=False))
    labels = data.draw(label_tensors(spec, (BATCH,)))
    every = [key for key, _ in module.named_parameters(remove_duplicate=False)]
    names = tuple(data.draw(st.lists(st.sampled_from(every), min_size=1, unique=True)))
    wanted = one_at_a_time(module, x, oracle_mask(spec, labels), dim, names)
    whole = learned(module, x)
    router = gr.Router(module, {"": gr.Site(spec, level="parameters", dim=dim, parameters=names)})
    found = learned(module, x, router(labels))
    torch.testing.assert_close(found["input"], whole["input"])
    for key, gradient in wanted.items():
        torch.testing.assert_close(
            found[key], gradient, rtol=1e-4, atol=1e-5, msg=lambda text, key=key: f"{key}: {text}"
        )
    tied = {id(dict(module.named_parameters(remove_duplicate=False))[other]) for other in names}
    for key, parameter in module.named_parameters():
        if id(parameter) not in tied:
            assert torch.allclose(found[key], whole[key], rtol=1e-5, atol=1e-7), key


@pytest.mark.parametrize("name", [n for n in MODULES if n != "weight norm"])
@settings(max_examples=5)
@given(data=st.data())
def test_the_reference_agrees_at_both_ends(name, data):
    module, x, dim = made(name)
    spec = data.draw(specs(WIDTH, hard=True, silent=False))
    labels = data.draw(label_tensors(spec, (BATCH,), "integer"))
    every = [key for key, _ in module.named_parameters()]
    names = tuple(data.draw(st.lists(st.sampled_from(every), min_size=1, unique=True)))
    sites = [gr.Site(spec, level="parameters", dim=dim, parameters=names)]
    if any("weight" in each for each in names) and name != "circular":
        sites.append(gr.Site(spec, on="input", level="parameters", dim=dim, parameters=names))
    if name in KNOWN and data.draw(st.booleans()):
        sites.append(gr.Site(spec, level="parameters", dim=dim))
    assert_routed(module, {"": sites}, x, labels)


@pytest.mark.parametrize("name", [*KNOWN, "own", "tied"])
def test_second_derivatives_and_transforms_are_those_of_a_parameter_for_each_example(name):
    module, x, dim = made(name)
    spec = gr.RoutingSpec.one_per_label(WIDTH)
    labels = torch.tensor([0, 1, gr.UNLABELED])
    names = ("a.bias",) if name == "tied" else ("inner.2.bias", "scale") if name == "own" else ("bias",)
    mask = spec.mask(labels).view(BATCH, *[1] * (x.ndim - 2), WIDTH).movedim(-1, dim)

    def by_hand(x):
        fixed = {key: module.get_parameter(key).detach() for key in names}
        return torch.where(mask != 0, module(x), torch.func.functional_call(module, fixed, x))

    router = gr.Router(module, {"": gr.Site(spec, level="parameters", dim=dim, parameters=names)})
    found = []
    for block in (router(labels), None):
        module.zero_grad()
        leaf = x.clone().requires_grad_()
        if block is None:
            router.remove()
            y = by_hand(leaf)
        else:
            with block:
                y = module(leaf)
        gradients = torch.autograd.grad(y.square().sum(), [leaf, *module.parameters()], create_graph=True)
        sum(gradient.square().sum() for gradient in gradients).backward()
        found.append({"input": leaf.grad} | {key: p.grad for key, p in module.named_parameters()})
    torch.testing.assert_close(*found, rtol=1e-3, atol=1e-4)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
@pytest.mark.parametrize("name", [*KNOWN, "own"])
def test_torch_func_and_compiled_code_agree_with_eager(name):
    module, x, dim = made(name)
    spec = gr.RoutingSpec.one_per_label(WIDTH)
    labels = torch.tensor([0, 1, gr.UNLABELED])
    names = ("inner.2.bias", "scale") if name == "own" else ("bias",)
    router = gr.Router(module, {"": gr.Site(spec, level="parameters", dim=dim, parameters=names)})
    parameters = {key: p.detach() for key, p in module.named_parameters()}

    def loss(call, *args):
        return call(*args).tanh().square().sum()

    with router(labels):
        loss(module, x).backward()
        eager = {key: p.grad.clone() for key, p in module.named_parameters()}
        functional = torch.func.grad(lambda p: loss(lambda x: torch.func.functional_call(module, p, x), x))(parameters)
        torch.testing.assert_close(functional, eager, rtol=1e-4, atol=1e-5)
        module.zero_grad()
        torch.compiler.reset()
        loss(torch.compile(module, backend="aot_eager", fullgraph=name in KNOWN), x).backward()
        torch.testing.assert_close({key: p.grad for key, p in module.named_parameters()}, eager, rtol=1e-4, atol=1e-5)
