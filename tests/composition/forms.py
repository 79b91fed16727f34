"""One small network in each of the three forms of routing, the data it sees, and the oracle it is held against."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import gradroute as gr

FORMS = ("functional", "router", "routed_module")
INPUTS, WIDTH, OUTPUTS = 5, 6, 3
SPEC = gr.RoutingSpec({"retain": slice(0, 3), "forget": slice(3, 5)}, WIDTH, shared=5)
SOFT = gr.RoutingSpec(
    {"retain": gr.Route(slice(0, 3), weight=0.5), "forget": gr.Route(slice(3, 5), weight=2.0, elsewhere=-0.25)}, WIDTH
)

# What torch itself warns of: forward mode and inductor script their own helpers at first use, and Dynamo reads .grad of
# the tensors that a graph takes in, to see whether there is one to guard on.
WARNINGS_OF_TORCH = [
    pytest.mark.filterwarnings(r"ignore:`torch\.jit\.script(_method)?` is deprecated"),
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning"),
]


def oracle_route(x: Tensor, labels: Tensor, spec: gr.RoutingSpec, *, dim: int = -1) -> Tensor:
    """What routing means, in operations that autograd knows: for finite x, and labels that lead its shape."""
    ids = not (labels.dtype == torch.bool or labels.is_floating_point())
    rows = spec.table.index_select(0, labels.reshape(-1) % len(spec.table)) if ids else spec.mask(labels)
    shape = labels.shape if ids else labels.shape[:-1]
    mask = rows.to(x.dtype).view(*shape, *[1] * (x.ndim - len(shape) - 1), spec.width).movedim(-1, dim)
    if bool(((spec.table == 0) | (spec.table == 1)).all()) and not labels.is_floating_point():
        return torch.where(mask != 0, x, x.detach())
    return x.detach() + mask * (x - x.detach())


class Net(nn.Module):
    """An encoder whose output is routed, and a decoder. Without labels nothing is."""

    def __init__(self, route: Callable[..., Tensor] = gr.route, spec: gr.RoutingSpec = SPEC) -> None:
        super().__init__()
        self.encoder = nn.Linear(INPUTS, WIDTH)
        self.decoder = nn.Linear(WIDTH, OUTPUTS)
        self.route = route
        self.spec = spec

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        z = self.encoder(x)
        if labels is not None:
            z = self.route(z, labels, self.spec)
        return self.decoder(torch.tanh(z))

    def loss(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        return self(x, labels).square().sum()


class Routed:
    """A network in one form; called with inputs and labels, whatever the form.

    Attributes:
        net: The network, whose parameters have the same names in every form.
        module: What a user of this form would wrap, compile or hand to a trainer.
        router: None in the functional form and for the oracle.
    """

    def __init__(
        self,
        form: str,
        make: Callable[[Callable[..., Tensor], gr.RoutingSpec], nn.Module] = Net,
        *,
        spec: gr.RoutingSpec = SPEC,
        sites: dict[str, gr.Site] | None = None,
    ) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.net = make(oracle_route if form == "oracle" else gr.route, spec)
        self.form = form
        self.module = self.net
        self.router = None
        sites = sites or {"encoder": gr.Site(spec)}
        if form == "router":
            self.router = gr.Router(self.net, sites)
        elif form == "routed_module":
            self.module = gr.RoutedModule(self.net, sites)
            self.router = self.module.router

    def __call__(self, x: Tensor, labels: Tensor, *, via: Callable[..., Tensor] | None = None) -> Tensor:
        """The output, routed by the labels, through `module` or through what was made of it."""
        with self.block(labels):
            return self.call(self.module if via is None else via, x, labels)

    def call(self, module: Callable[..., Tensor], x: Tensor, labels: Tensor) -> Tensor:
        """The same for where the block is already there, such as around backward too."""
        if self.form == "routed_module":
            return module(x, route_labels=labels)
        return module(x) if self.form == "router" else module(x, labels)

    def block(self, labels: Tensor) -> contextlib.AbstractContextManager[object]:
        """What a user writes around forward and backward."""
        return self.router(labels) if self.form == "router" else contextlib.nullcontext()

    def gradients(self) -> dict[str, Tensor | None]:
        return {name: parameter.grad for name, parameter in self.net.named_parameters()}

    def zero_grad(self) -> None:
        self.net.zero_grad()


def batch(n: int = 8, seed: int = 0, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Inputs [n, INPUTS] and labels [n] in which retain, forget and unlabeled examples are mixed."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, INPUTS, generator=generator, dtype=dtype)
    ids = torch.tensor([0, 1, 1, gr.UNLABELED]).repeat(-(-n // 4))[:n]
    return x, ids[torch.randperm(n, generator=generator)]


def label_kinds(labels: Tensor) -> dict[str, Tensor]:
    """The same labels as ids and as multi-hot rows, and other ones as mixtures."""
    multi_hot = torch.stack([labels == 0, labels == 1], -1)
    return {"ids": labels, "multi_hot": multi_hot, "mixture": multi_hot.float() * 0.75 + 0.25}


def expected_gradients(
    x: Tensor, labels: Tensor, make: Callable[..., nn.Module] = Net, *, spec: gr.RoutingSpec = SPEC
) -> dict[str, Tensor | None]:
    """The oracle's gradients of the sum of squares, in plain eager mode."""
    oracle = Routed("oracle", make, spec=spec)
    oracle.net.to(x.dtype)
    oracle(x, labels).square().sum().backward()
    return oracle.gradients()


def assert_same(actual: dict[str, Tensor | None], expected: dict[str, Tensor | None], **tolerance: float) -> None:
    """The gradients agree; where the oracle's are exactly 0, the others are too."""
    assert actual.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(actual[name], gradient, msg=lambda text, name=name: f"{name}: {text}", **tolerance)
        if gradient is not None and gradient.layout == torch.strided:
            assert not actual[name][gradient == 0].any(), f"{name}: gradient where the mask is 0"


def assert_backward_routes(routed: Routed, run: Callable[[Tensor, Tensor], Tensor], x: Tensor, labels: Tensor) -> None:
    """One step, forward by `run` and backward, gives the oracle's gradients."""
    routed.zero_grad()
    run(x, labels).square().sum().backward()
    assert_same(routed.gradients(), expected_gradients(x, labels, type(routed.net), spec=routed.net.spec))


def functional_loss(routed: Routed) -> tuple[Callable[..., Tensor], dict[str, Tensor]]:
    """``loss(params, x, labels)`` and the parameters, as `torch.func` wants them."""

    def loss(params: dict[str, Tensor], x: Tensor, labels: Tensor) -> Tensor:
        def stateless(*args: Tensor, **kwargs: Tensor) -> Tensor:
            return torch.func.functional_call(routed.module, params, args, kwargs)

        return routed(x, labels, via=stateless).square().sum()

    return loss, {name: parameter.detach() for name, parameter in routed.module.named_parameters()}
