"""Level "parameters" on modules of which nothing is known: one run in eager mode, whatever the module remembers or draws."""

import contextlib
import random
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import gradroute as gr
from unit.router.unknown import MIXED, RETAIN, SPEC, WIDTH, Projected


class CountsItsCalls(Projected):
    calls = 0

    def forward(self, x):
        self.calls += 1
        return super().forward(x) * self.calls


class UpdatesABufferBeforeUse(Projected):
    def __init__(self):
        super().__init__()
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x):
        self.count += 1
        return super().forward(x) * self.count


class DrawsByPython(Projected):
    def forward(self, x):
        return super().forward(x) * random.random()


class DrawsByNumpy(Projected):
    def forward(self, x):
        return super().forward(x) * float(np.random.rand())


class Drops(Projected):
    def forward(self, x):
        return F.dropout(super().forward(x), 0.5, training=True)


class AppendsToACache(Projected):
    def forward(self, x, cache):
        y = super().forward(x)
        cache.append(y)
        return torch.stack(list(cache)).sum(0)


MODULES = [Projected, CountsItsCalls, UpdatesABufferBeforeUse, DrawsByPython, DrawsByNumpy, Drops, AppendsToACache]


def run(module, *, mask=None, weight=None):
    """Output, gradient of the input and own gradients; by hand with a mask, a run for each example's own gradient."""
    torch.manual_seed(1)
    random.seed(1)
    np.random.seed(1)
    x = torch.randn(5, 3, requires_grad=True)
    cache = ([],) if isinstance(module, AppendsToACache) else ()
    y = module(x, *cache)
    g = torch.linspace(-1, 1, y.numel()).view_as(y)
    if mask is None:
        y.backward(g)
        return y.detach(), x.grad, {name: p.grad for name, p in module.named_parameters()}
    (of_input,) = torch.autograd.grad(y, x, g, retain_graph=True)
    own = torch.autograd.grad(y, list(module.parameters()), g * mask)
    return y.detach(), of_input, dict(zip(dict(module.named_parameters()), own, strict=True))


@pytest.mark.parametrize("kind", MODULES)
@pytest.mark.parametrize("spec", [SPEC, gr.RoutingSpec({0: gr.Route(0, 0.5), 1: gr.Route([1, 2], -2.0)}, WIDTH)])
def test_a_module_runs_once(kind, spec):
    """The output is bitwise that of the plain module; the input learns whole, and its own parameters by route."""
    module, plain = kind(), kind()
    expected = run(plain, mask=spec.mask(MIXED))
    with gr.Router(module, {"": gr.Site(spec, level="parameters")})(MIXED):
        found = run(module)
    assert torch.equal(found[0], expected[0])
    torch.testing.assert_close(found[1:], expected[1:])
    for one, other in zip(module.buffers(), plain.buffers(), strict=True):
        assert torch.equal(one, other)
    assert getattr(module, "calls", 1) == 1


@dataclass
class Pair:
    first: torch.Tensor
    second: torch.Tensor


class Attributes(dict):
    """A dict whose items are its attributes, too."""

    def __init__(self, **items):
        super().__init__(**items)
        self.__dict__ = self


PAIRS = {
    "tuple": (lambda a, b: (a, b), 0, 1),
    "dict": (lambda a, b: {"first": a, "second": b}, "first", "second"),
    "dataclass": (Pair, "first", "second"),
    "list": (lambda a, b: [a, [b]], 0, (1, 0)),
    "torch.return_types": (lambda a, b: torch.return_types.max((a, b)), 0, 1),
    "items that are attributes": (lambda a, b: Attributes(first=a, second=b), "first", "second"),
}


@pytest.mark.parametrize("pair", PAIRS.values(), ids=PAIRS)
@pytest.mark.parametrize("level", ["activations", "parameters"])
def test_outputs_beside_the_sites_teach_whole(pair, level):
    make, first, second = pair

    class Two(Projected):
        def forward(self, x):
            y = super().forward(x)
            return make(y * 2, y * 3)

    def at(output, step):
        for one in step if isinstance(step, tuple) else (step,):
            output = getattr(output, one) if isinstance(output, Pair | Attributes) else output[one]
        return output

    module = Two()
    router = gr.Router(module, {"": gr.Site(SPEC, level=level, index=first)})
    x = torch.randn(5, 3)
    with router(RETAIN):
        output = module(x)
        at(output, first).sum().backward(retain_graph=True)
        of_first = module.projection.bias.grad.clone()
        module.zero_grad()
        at(output, second).sum().backward()
    assert type(output) is type(make(x, x))
    assert of_first[3] == 0
    assert of_first[:3].all()
    slope = 1 - module.projection(x).tanh() ** 2
    torch.testing.assert_close(module.projection.bias.grad, 3 * slope.sum(0))


def test_the_final_state_of_a_recurrent_layer_teaches_beside_its_output():
    gru = nn.GRU(3, WIDTH, batch_first=True)
    x = torch.randn(5, 2, 3)
    gru(x)[1].sum().backward()
    whole = gru.bias_ih_l0.grad.clone()
    gru.zero_grad()
    with gr.Router(gru, {"": gr.Site(SPEC, index=0, level="parameters")})(RETAIN):
        gru(x)[1].sum().backward()
    torch.testing.assert_close(gru.bias_ih_l0.grad, whole)


def test_hooks_on_parameters_see_the_routed_gradient_once():
    module = Projected()
    seen = []
    module.projection.bias.register_hook(lambda grad: seen.append(grad.clone()))
    with gr.Router(module, {"": gr.Site(SPEC, level="parameters")})(RETAIN):
        module(torch.randn(5, 3)).sum().backward()
    assert len(seen) == 1
    assert torch.equal(seen[0], module.projection.bias.grad)
    assert seen[0][3] == 0


def test_an_in_place_operation_on_a_view_of_the_input_raises():
    class Views(Projected):
        def forward(self, x):
            self.projection(x)
            return x.view(15)

    x = torch.randn(5, 3, requires_grad=True) * 1
    module = Views()
    with gr.Router(module, {"": gr.Site(gr.RoutingSpec.one_per_label(15), level="parameters")})(torch.tensor(0)):
        y = module(x)
    with pytest.raises(RuntimeError, match="is a view and is being modified inplace"):
        y.relu_()


def derivatives(kind, handed_in, spec=None):
    """Gradients and second derivatives, under a mask of ones or without a router; hooks of a user change both."""
    seen = []

    def twice(gradient):
        seen.append(gradient.detach())
        return 2 * gradient

    torch.manual_seed(1)
    module = kind()
    x, own = torch.randn(5, 3, requires_grad=True), next(module.parameters())
    inner = x.sin()
    hooks = [tensor.register_hook(twice) for tensor in (inner, own)]
    router = None if spec is None else gr.Router(module, {"": gr.Site(spec, level="parameters")})
    with contextlib.nullcontext() if router is None else router(RETAIN):
        first = torch.autograd.grad(module(*[inner] * handed_in).square().sum(), [x, own], create_graph=True)
        second = torch.autograd.grad(sum(gradient.square().sum() for gradient in first), [x, own])
    if router is not None:
        router.remove()
    for hook in hooks:
        hook.remove()
    return [*first, *second], len(seen)


class Attends(Projected):
    """Takes one tensor for several arguments, as self-attention does."""

    def forward(self, queries, keys):
        return super().forward(queries) * self.projection(keys)


@pytest.mark.parametrize(
    ("kind", "handed_in"),
    [(lambda: nn.Linear(3, WIDTH), 1), (Projected, 1), (Attends, 2)],
    ids=["known", "other", "two"],
)
def test_second_derivatives_are_those_of_the_module_under_a_mask_of_ones(kind, handed_in):
    """Each tensor has its gradient once, whether it is handed in once or twice; and so its hooks see it."""
    expected, how_often = derivatives(kind, handed_in)
    found, seen = derivatives(kind, handed_in, spec=gr.RoutingSpec({"retain": slice(None)}, WIDTH))
    assert seen == how_often
    torch.testing.assert_close(found, expected)
