"""Memory formats, strides, empty batches, sparse and nested tensors: what a tensor looks like decides nothing."""

import pytest
import torch
from torch import nn

import gradroute as gr
from composition.forms import SOFT, SPEC, WIDTH, Routed, assert_same, batch, oracle_route

BOTH_SPECS = pytest.mark.parametrize("spec", [SPEC, SOFT], ids=["hard", "soft"])


class ConvNet(nn.Module):
    """Routed along the channels, and then changed in place where the form allows that."""

    def __init__(self, route, spec: gr.RoutingSpec) -> None:
        super().__init__()
        self.encoder = nn.Conv2d(3, WIDTH, 3, padding=1)
        self.decoder = nn.Conv2d(WIDTH, 2, 1)
        self.route = route
        self.spec = spec

    def forward(self, x: torch.Tensor, labels: torch.Tensor | None = None) -> torch.Tensor:
        z = self.encoder(x)
        if labels is not None:
            z = self.route(z, labels, self.spec, dim=1)
        return self.decoder(torch.tanh(z) if labels is not None else torch.tanh_(z))


@BOTH_SPECS
@pytest.mark.supports("channels_last")
def test_channels_last_is_kept_forward_and_backward(form: str, spec) -> None:
    _, labels = batch()
    x = torch.randn(8, 3, 5, 4).contiguous(memory_format=torch.channels_last)
    results = []
    for name in (form, "oracle"):
        routed = Routed(name, ConvNet, spec=spec, sites={"encoder": gr.Site(spec, dim=1)})
        routed.net.to(memory_format=torch.channels_last)
        incoming = []
        routed.net.encoder.register_forward_hook(
            lambda _, __, z, incoming=incoming: z.register_hook(incoming.append) and None
        )
        output = routed(x, labels)
        gradients = routed.learn(output.square().sum())
        assert incoming[0].is_contiguous(memory_format=torch.channels_last)
        results.append((output, gradients))
    assert torch.equal(results[0][0], results[1][0])
    assert_same(results[0][1], results[1][1], rtol=1e-4, atol=1e-4)


def strided(kind: str, dtype: torch.dtype) -> torch.Tensor:
    base = torch.randn(16, 2 * WIDTH, dtype=dtype)
    return {
        "transposed": base[:WIDTH, :8].t(),
        "every second": base[::2, ::2],
        "expanded over the batch": base[:1, :WIDTH].expand(8, -1),
        "expanded over the units": base[:8, :1].expand(-1, WIDTH),
        "negated by a view": torch._neg_view(base[:8, :WIDTH]),
        "offset": base[3:11, 1 : 1 + WIDTH],
    }[kind]


STRIDES = [
    "transposed",
    "every second",
    "expanded over the batch",
    "expanded over the units",
    "negated by a view",
    "offset",
]


@BOTH_SPECS
@pytest.mark.parametrize("side", ["tensor", "gradient"])
@pytest.mark.parametrize("kind", STRIDES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.supports("non-contiguous and expanded tensors, every floating dtype", forms=["functional"])
def test_strides_of_tensor_and_gradient_do_not_matter(spec, side: str, kind: str, dtype: torch.dtype) -> None:
    _, labels = batch()
    unusual, plain = strided(kind, dtype), torch.randn(8, WIDTH, dtype=dtype)
    x, gradient = (unusual, plain) if side == "tensor" else (plain, unusual)
    before = gradient.clone()
    found = []
    for route in (gr.route, oracle_route):
        leaf = x.detach().requires_grad_()
        found.append(torch.autograd.grad(route(leaf, labels, spec), leaf, gradient)[0])
    torch.testing.assert_close(*found)
    assert torch.equal(gradient, before), "a gradient belongs to autograd and is not to be changed in place"


@BOTH_SPECS
@pytest.mark.supports("complex tensors", forms=["functional"])
def test_complex_gradients_are_masked(spec) -> None:
    _, labels = batch()
    x = torch.randn(8, WIDTH, dtype=torch.complex64, requires_grad=True)
    found = [torch.autograd.grad(route(x, labels, spec).abs().sum(), x)[0] for route in (gr.route, complex_oracle)]
    torch.testing.assert_close(*found)


def complex_oracle(x: torch.Tensor, labels: torch.Tensor, spec: gr.RoutingSpec) -> torch.Tensor:
    return torch.complex(oracle_route(x.real, labels, spec), oracle_route(x.imag, labels, spec))


@pytest.mark.supports("empty batches")
@pytest.mark.parametrize("kind", [torch.int64, torch.bool, torch.float32])
def test_an_empty_batch_gives_zero_gradients(routed: Routed, kind: torch.dtype) -> None:
    x, _ = batch(0)
    labels = torch.zeros((0,) if kind == torch.int64 else (0, len(SPEC.labels)), dtype=kind)
    routed(x, labels).square().sum().backward()
    assert all(gradient is not None and not gradient.any() for gradient in routed.gradients().values())


# Of torch 2.12, for one: once in a process.
@pytest.mark.filterwarnings("ignore:Sparse invariant checks are implicitly disabled:UserWarning")
@BOTH_SPECS
@pytest.mark.supports("sparse gradients of a routed table", forms=["functional"])
def test_a_sparse_gradient_is_masked(spec) -> None:
    """The rows of an embedding's weight, each routed by its own label; the embedding hands back a sparse gradient."""
    _, labels = batch()
    weight = torch.randn(8, WIDTH, requires_grad=True)
    found = []
    for route in (gr.route, oracle_route):
        z = nn.functional.embedding(torch.tensor([0, 1, 1, 5]), route(weight, labels, spec), sparse=route is gr.route)
        found.append(torch.autograd.grad(z.square().sum(), weight)[0].to_dense())
    torch.testing.assert_close(*found)


class SparseNet(nn.Module):
    def __init__(self, route, spec: gr.RoutingSpec) -> None:
        super().__init__()
        self.encoder = nn.Embedding(5, WIDTH, sparse=True)
        self.route = route
        self.spec = spec

    def forward(self, x: torch.Tensor, labels: torch.Tensor | None = None) -> torch.Tensor:
        z = self.encoder(x)
        return torch.tanh(z if labels is None else self.route(z, labels, self.spec))


@pytest.mark.supports("`nn.Embedding(sparse=True)`")
def test_the_sparse_gradient_of_a_routed_embedding_is_the_oracles(form: str) -> None:
    _, labels = batch()
    x = torch.randint(0, 5, (8,))
    found = []
    for name in (form, "oracle"):
        routed = Routed(name, SparseNet)
        routed(x, labels).square().sum().backward()
        assert routed.net.encoder.weight.grad.is_sparse
        found.append(routed.net.encoder.weight.grad.to_dense())
    torch.testing.assert_close(*found)


@pytest.mark.refuses("nested tensors", "route their values")
def test_nested_tensors_are_refused_in_the_forward_pass(form: str) -> None:
    x = torch.nested.nested_tensor([torch.randn(2, 5), torch.randn(3, 5)], layout=torch.jagged)
    routed = Routed(form)
    with pytest.raises(gr.RoutingError, match=r"nested tensors cannot be routed.*values"):
        routed(x, torch.tensor([0, 1]))
