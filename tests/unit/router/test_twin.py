"""A module that runs on other tensors than its own, also where its weights are no parameters."""

import contextlib

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

import gradroute as gr
from gradroute.errors import UsageError
from unit.router.unknown import RETAIN, SPEC, WIDTH, Projected

EVERYTHING = gr.RoutingSpec({"retain": slice(None)}, WIDTH)
X = torch.linspace(-1, 2, 15).view(5, 3)


@pytest.mark.parametrize("bias", ["frozen", "none", "learns"])
def test_weights_computed_of_others_learn_by_route(bias):
    """As in MAML, where a step is taken on weights before they are used."""
    layer = nn.Linear(3, WIDTH, bias=bias != "none")
    w = nn.Parameter(layer.weight.detach().clone())
    del layer.weight
    layer.weight = w - 0.5 * w.detach()
    if bias == "frozen":
        layer.bias.requires_grad_(False)
    with gr.Router(layer, {"": gr.Site(SPEC, level="parameters")})(RETAIN):
        layer(torch.randn(5, 3)).sum().backward()
    assert not w.grad[3].any()
    assert w.grad[:3].all()


def test_computed_weights_deep_inside_learn_by_route():
    class Hyper(Projected):
        def forward(self, x):
            return super().forward(x) + 1

    module = Hyper()
    w = nn.Parameter(module.projection.weight.detach().clone())
    del module.projection.weight
    module.projection.weight = 2 * w
    with gr.Router(module, {"": gr.Site(SPEC, level="parameters")})(RETAIN):
        module(torch.randn(5, 3)).sum().backward()
    assert not w.grad[3].any()
    assert w.grad[:3].all()


class KeepsItsNorm(Projected):
    """Bounds its weights as it runs, as some layers for EEG do."""

    def forward(self, x):
        self.projection.weight.data = torch.renorm(self.projection.weight.data, 2, 0, 0.1)
        return super().forward(x)


@pytest.mark.parametrize("on", ["output", "input"])
def test_what_a_module_does_to_its_values_is_done(on):
    module = KeepsItsNorm()
    spec = SPEC if on == "output" else gr.RoutingSpec({"retain": [0, 1], "forget": 2}, 3)
    optimizer = torch.optim.SGD(module.parameters(), lr=1.0)
    router = gr.Router(module, {"": gr.Site(spec, on=on, level="parameters")})
    for _ in range(2):
        optimizer.zero_grad()
        with router(RETAIN):
            module(torch.randn(5, 3)).sum().backward()
        torch.testing.assert_close(module.projection.weight.norm(dim=1), torch.full((WIDTH,), 0.1))
        grad = module.projection.weight.grad
        assert not (grad[3] if on == "output" else grad[:, 2]).any()
        assert grad.any()
        optimizer.step()


class WorksInPlace(Projected):
    """A branch that is added to what came in, in place."""

    def __init__(self):
        super().__init__()
        self.back = nn.Linear(WIDTH, 3)

    def forward(self, x):
        x += self.back(super().forward(x.clone()))
        return x


class WorksInPlaceAndReturnsAnother(WorksInPlace):
    def forward(self, x):
        return super().forward(x) * 2


@pytest.mark.parametrize("kind", [WorksInPlace, WorksInPlaceAndReturnsAnother])
@pytest.mark.parametrize("on", ["output", "input"])
def test_a_module_that_works_in_place_on_what_it_is_handed_is_refused(kind, on):
    """The stand-ins for its parameters would take what comes to them by that tensor, and drop it."""
    spec = gr.RoutingSpec({"retain": [0, 1], "forget": 2}, 3)
    module = kind()
    router = gr.Router(module, {"": gr.Site(spec, on=on, level="parameters")})
    with router(RETAIN), pytest.raises(UsageError, match="works in place on a tensor that it is handed"):
        module(torch.randn(5, 3, requires_grad=True) * 1)


def test_work_in_place_before_the_parameters_is_none_of_this():
    class First(Projected):
        def forward(self, x):
            return super().forward(x.relu_())

    def upstream(spec):
        module, x = First(), torch.linspace(-1, 1, 15).view(5, 3).requires_grad_()
        h = x * 1
        router = None if spec is None else gr.Router(module, {"": gr.Site(spec, level="parameters")})
        with contextlib.nullcontext() if router is None else router(RETAIN):
            (module(h).sum() + h.square().sum()).backward()
        return x.grad, module.projection.weight.grad

    routed, plain = upstream(SPEC), upstream(None)
    torch.testing.assert_close(routed[0], plain[0])
    torch.testing.assert_close(routed[1][:3], plain[1][:3])
    assert not routed[1][3].any()


class Halved(nn.Module):
    def forward(self, weight):
        return weight / 2


@pytest.mark.parametrize("first", ["the module", "others"])
def test_what_others_compute_with_cached_weights_is_theirs(first):
    """Of a `parametrize.cached()` weight the module has one of its own, made of what stands in for its parameters."""

    def gradient(spec):
        torch.manual_seed(0)
        module = nn.Bilinear(3, 3, WIDTH)
        parametrize.register_parametrization(module, "weight", Halved())
        router = None if spec is None else gr.Router(module, {"": gr.Site(spec, level="parameters")})
        with contextlib.nullcontext() if router is None else router(RETAIN), parametrize.cached():
            loss = module.weight.square().sum() if first == "others" else 0
            loss = loss + module(X, X).sum()
            if first == "the module":
                loss = loss + module.weight.square().sum()
            loss.backward()
        return module.parametrizations.weight.original.grad

    torch.manual_seed(1)
    routed, plain = gradient(SPEC), gradient(None)
    torch.testing.assert_close(routed[:3], plain[:3])
    torch.testing.assert_close(gradient(EVERYTHING), plain)
    torch.manual_seed(0)
    alone = nn.Bilinear(3, 3, WIDTH).weight.detach()
    torch.testing.assert_close(routed[3], alone[3] / 2)  # of the others' square, and of nothing else
