"""A site on a bias alone, with what else PyTorch does to a layer: the weight learns whole, the bias by route."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import gradroute as gr
from composition.forms import SPEC, WARNINGS_OF_TORCH, Net, Routed, batch, functional_loss, oracle_rows

pytestmark = [*WARNINGS_OF_TORCH, pytest.mark.parametrize("form", ["router", "routed_module"])]
NAMED = "`Site(parameters=...)`"


class Oracle(Net):
    """For each example a bias that learns by its mask: a part with the bias, a part with a fixed one."""

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        mask = oracle_rows(labels, self.spec)
        bias = mask * self.encoder.bias + (1 - mask) * self.encoder.bias.detach()
        return self.decoder(torch.tanh(F.linear(x, self.encoder.weight) + bias))


@pytest.fixture
def named(form: str) -> Routed:
    return Routed(form, sites={"encoder": gr.Site(SPEC, level="parameters", parameters=("bias",))})


def expected(x: Tensor, labels: Tensor) -> dict[str, Tensor | None]:
    oracle = Routed("oracle", Oracle)
    oracle(x, labels).square().sum().backward()
    return oracle.gradients()


def assert_by_route(found: dict[str, Tensor | None], x: Tensor, labels: Tensor) -> None:
    torch.testing.assert_close(found, expected(x, labels), rtol=1e-4, atol=1e-5)


@pytest.mark.supports(f"{NAMED}: eager")
def test_named_parameters_learn_by_route_and_the_others_whole(named: Routed) -> None:
    for seed in range(2):
        x, labels = batch(seed=seed)
        named.zero_grad()
        named(x, labels).square().sum().backward()
        assert_by_route(named.gradients(), x, labels)
        only_retain = torch.zeros_like(labels)
        named.zero_grad()
        named(x, only_retain).square().sum().backward()
        assert not named.net.encoder.bias.grad[3:5].any()
        assert named.net.encoder.weight.grad.all()


@pytest.mark.supports(f"{NAMED}: `torch.compile`, fullgraph")
def test_compiled_code(named: Routed) -> None:
    torch.compiler.reset()
    compiled = torch.compile(named.module, backend="aot_eager", fullgraph=True)
    for seed in range(2):
        x, labels = batch(seed=seed)
        named.zero_grad()
        named(x, labels, via=compiled).square().sum().backward()
        assert_by_route(named.gradients(), x, labels)


@pytest.mark.supports(f"{NAMED}: `torch.func`: grad")
def test_functional_gradients(named: Routed) -> None:
    x, labels = batch()
    loss, parameters = functional_loss(named)
    found = torch.func.grad(loss)(parameters, x, labels)
    assert_by_route({name.removeprefix("module."): gradient for name, gradient in found.items()}, x, labels)


@pytest.mark.supports(f"{NAMED}: double backward (`create_graph=True`)")
def test_second_derivatives(named: Routed) -> None:
    x, labels = batch()
    oracle = Routed("oracle", Oracle)
    found = []
    for model in (named, oracle):
        loss = model(x, labels).square().sum()
        first = torch.autograd.grad(loss, list(model.net.parameters()), create_graph=True)
        sum(gradient.square().sum() for gradient in first).backward()
        found.append(model.gradients())
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-4)


@pytest.mark.supports(f"{NAMED}: activation checkpointing")
@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpoints(named: Routed, reentrant: bool) -> None:
    x, labels = batch()
    with named.router(labels):
        run = lambda x: named.call(named.module, x, labels)  # noqa: E731
        checkpoint(run, x.requires_grad_(), use_reentrant=reentrant).square().sum().backward()
    assert_by_route(named.gradients(), x.detach(), labels)


@pytest.mark.supports(f"{NAMED}: autocast, bfloat16")
def test_autocast(named: Routed) -> None:
    x, labels = batch()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = named(x, labels).float().square().sum()
    loss.backward()
    torch.testing.assert_close(named.gradients(), expected(x, labels), rtol=0.05, atol=0.1)
