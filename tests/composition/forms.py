"""One small network in each of the three forms of routing, the data it sees, and the oracle it is held against."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import gradroute as gr
from gradroute.testing._oracle import along, closed_entries, oracle_row, oracle_silent_row, scaled, silenced, stopped

#: Of what Dynamo of these versions cannot do, or says otherwise, the tests of this folder ask less.
BEFORE_2_12 = torch.__version__ < "2.12"
BEFORE_2_10 = torch.__version__ < "2.10"

FORMS = ("functional", "router", "routed_module")
INPUTS, WIDTH, OUTPUTS = 5, 6, 3
SPEC = gr.RoutingSpec({"retain": slice(0, 3), "forget": slice(3, 5)}, WIDTH, shared=5)
SILENT = gr.RoutingSpec(SPEC.routes, WIDTH, shared=5, silent={"retain": "forget"})
SOFT = gr.RoutingSpec(
    {"retain": gr.Route(slice(0, 3), weight=0.5), "forget": gr.Route(slice(3, 5), weight=2.0, elsewhere=-0.25)}, WIDTH
)

# What torch itself warns of: forward mode and inductor script their own helpers at first use, and Dynamo reads .grad of
# the tensors that a graph takes in, to see whether there is one to guard on.
WARNINGS_OF_TORCH = [
    pytest.mark.filterwarnings(r"ignore:`torch\.jit\.script(_method)?` is deprecated"),
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning"),
]


def oracle_rows(labels: Tensor, spec: gr.RoutingSpec) -> Tensor:
    """`gradroute.testing.oracle_mask` in operations that every transform knows; labels are ids, and no integer keys."""
    assert not any(isinstance(label, int) for label in spec.labels)
    rows = torch.tensor([oracle_row(spec, label) for label in (*spec.labels, gr.UNLABELED)])
    if labels.is_floating_point():
        return labels @ rows[:-1]
    if labels.dtype != torch.bool:
        return rows.index_select(0, labels.reshape(-1) % len(rows)).view(*labels.shape, spec.width)
    weights = torch.where(labels[..., None], rows[:-1], 0)
    largest = weights.abs().amax(-2)
    union = torch.where((weights == largest[..., None, :]).any(-2), largest, -largest)
    return torch.where(labels.any(-1, keepdim=True), union, rows[-1])


def oracle_off(labels: Tensor, spec: gr.RoutingSpec) -> Tensor:
    """`gradroute.testing.oracle_silent` in such operations."""
    rows = torch.tensor([oracle_silent_row(spec, label) for label in (*spec.labels, gr.UNLABELED)])
    if not (labels.is_floating_point() or labels.dtype == torch.bool):
        return rows.index_select(0, labels.reshape(-1) % len(rows)).view(*labels.shape, spec.width)
    has = labels != 0
    on = (has[..., None] & ~rows[:-1]).any(-2)
    return torch.where(has.any(-1, keepdim=True), ~on, rows[-1])


def oracle_route(x: Tensor, labels: Tensor, spec: gr.RoutingSpec, *, dim: int = -1) -> Tensor:
    """What routing means, in operations that autograd knows: for finite x, and labels that lead its shape."""
    mask = along(oracle_rows(labels, spec), x.ndim, dim).to(x.dtype)
    # Told by the spec, since transforms cannot look into a mask.
    rows = [oracle_row(spec, label) for label in (*spec.labels, gr.UNLABELED)]
    hard = all(weight in (0, 1) for row in rows for weight in row) and not labels.is_floating_point()
    routed = stopped(x, mask) if hard else scaled(x, mask)
    return silenced(routed, along(oracle_off(labels, spec), x.ndim, dim)) if spec.silent else routed


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


class Expected(dict[str, Tensor | None]):
    """The oracle's gradients by name.

    Attributes:
        closed: The entries of each that its masks close: there a gradient must be exactly 0.
    """

    def __init__(self, gradients: dict[str, Tensor | None], closed: dict[str, Tensor | None]) -> None:
        super().__init__(gradients)
        self.closed = closed


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

    def learn(self, loss: Tensor) -> dict[str, Tensor | None]:
        """The gradients that a loss of this network leaves; the oracle's with what its masks close."""
        if self.form != "oracle":
            loss.backward()
            return self.gradients()
        loss.backward(retain_graph=True)
        return Expected(self.gradients(), closed_entries(loss, self.net))

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
) -> Expected:
    """The oracle's gradients of the sum of squares, in plain eager mode."""
    oracle = Routed("oracle", make, spec=spec)
    oracle.net.to(x.dtype)
    return oracle.learn(oracle(x, labels).square().sum())


def assert_same(actual: dict[str, Tensor | None], expected: dict[str, Tensor | None], **tolerance: float) -> None:
    """The two agree; and where they are gradients and the oracle's masks close an entry, it is exactly 0."""
    assert actual.keys() == expected.keys()
    closed = getattr(expected, "closed", {})
    for name, gradient in expected.items():
        torch.testing.assert_close(actual[name], gradient, msg=lambda text, name=name: f"{name}: {text}", **tolerance)
        if gradient is not None and closed.get(name) is not None:
            assert not actual[name].to_dense()[closed[name]].any(), f"{name}: gradient where the mask is 0"


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
