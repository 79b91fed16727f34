"""torch.compile: routing that is switched on, off, exchanged or attached after compiling is never the stale one."""

import copy

import pytest
import torch
from torch import nn

import gradroute as gr
from composition import parameter_forms
from composition.backends import EachBackend
from composition.forms import (
    SOFT,
    SPEC,
    WARNINGS_OF_TORCH,
    WIDTH,
    Expected,
    Net,
    Routed,
    assert_same,
    batch,
    expected_gradients,
)

pytestmark = [*WARNINGS_OF_TORCH, pytest.mark.long]

NARROW = gr.RoutingSpec({"retain": slice(0, 2), "forget": slice(2, 5)}, WIDTH, shared=5)


@pytest.fixture(autouse=True)
def fresh_compiler() -> None:
    torch.compiler.reset()


def step(net: nn.Module, output: torch.Tensor) -> dict[str, torch.Tensor | None]:
    net.zero_grad()
    output.square().sum().backward()
    return {name: parameter.grad.clone() for name, parameter in net.named_parameters()}


def unrouted_gradients(x: torch.Tensor) -> dict[str, torch.Tensor | None]:
    net = Routed("oracle").net
    return step(net, net(x))


@pytest.mark.supports("`torch.compile`: routing off and on again")
@pytest.mark.parametrize("on_first", [True, False])
def test_switching_off_and_on_again_after_compiling(routed: Routed, on_first: bool) -> None:
    compiled = torch.compile(routed.module, backend="aot_eager", fullgraph=True)
    for seed, on in enumerate([on_first, not on_first, on_first, not on_first]):
        x, labels = batch(seed=seed)
        routed.module.train(on)  # a RoutedModule takes no labels only in evaluation
        gradients = step(routed.net, routed(x, labels, via=compiled) if on else compiled(x))
        assert_same(gradients, expected_gradients(x, labels) if on else unrouted_gradients(x))


@pytest.mark.supports("`torch.compile`: a router attached after the first run", forms=["router"])
def test_a_router_attached_after_the_compiled_model_ran_routes() -> None:
    x, labels = batch()
    net = Routed("oracle").net
    compiled = torch.compile(net, backend="aot_eager", fullgraph=True)
    step(net, compiled(x))
    router = gr.Router(net, {"encoder": SPEC})
    with router(labels):
        assert_same(step(net, compiled(x)), expected_gradients(x, labels))


@pytest.mark.supports("`torch.compile`: a router attached after the first run", forms=["routed_module"])
def test_a_model_wrapped_after_it_ran_compiled_routes() -> None:
    x, labels = batch()
    net = Routed("oracle").net
    net.compile(backend="aot_eager", fullgraph=True)
    step(net, net(x))
    wrapped = gr.RoutedModule(net, {"encoder": SPEC})
    assert_same(step(net, wrapped(x, route_labels=labels)), expected_gradients(x, labels))


@pytest.mark.supports("`torch.compile`: a router removed or exchanged after the first run", forms=["router"])
@pytest.mark.parametrize("spec", [SOFT, NARROW], ids=["soft", "narrow"])
def test_a_router_exchanged_after_compiling_routes_by_the_new_spec(spec: gr.RoutingSpec) -> None:
    x, labels = batch()
    routed = Routed("router")
    compiled = torch.compile(routed.net, backend="aot_eager", fullgraph=True)
    assert_same(step(routed.net, routed(x, labels, via=compiled)), expected_gradients(x, labels))
    routed.router.remove()
    assert_same(step(routed.net, compiled(x)), unrouted_gradients(x))
    with gr.Router(routed.net, {"encoder": spec})(labels):
        assert_same(step(routed.net, compiled(x)), expected_gradients(x, labels, spec=spec))


@pytest.mark.supports("`torch.compile`: another spec in compiled code", forms=["functional"])
def test_another_spec_in_the_same_compiled_function_is_obeyed() -> None:
    x, labels = batch()
    routed = Routed("functional")
    backends = EachBackend("aot_eager", "inductor")
    compiled = torch.compile(routed.net, backend=backends, fullgraph=True)
    for _ in backends.each():
        for spec in (SPEC, NARROW, SOFT, SPEC):
            routed.net.spec = spec
            gradients = step(routed.net, routed(x, labels, via=compiled))
            assert_same(gradients, expected_gradients(x, labels, spec=spec))


@pytest.mark.supports("`torch.compile`: two routers on one model", forms=["router"])
def test_two_routers_compose_in_compiled_code() -> None:
    x, labels = batch()
    _, others = batch(seed=1)
    eager, compiled = Routed("router"), Routed("router")
    gradients = []
    for routed, transform in [(eager, lambda net: net), (compiled, torch.compile(backend="aot_eager", fullgraph=True))]:
        second = gr.Router(routed.net, {"decoder": gr.Site(NARROW, on="input")})
        model = transform(routed.net)
        with second(others), routed.router(labels):
            gradients.append(step(routed.net, model(x)))
    assert_same(gradients[1], gradients[0])
    with pytest.raises(AssertionError):  # the second router makes a difference
        assert_same(gradients[1], expected_gradients(x, labels))


@pytest.mark.supports("`torch.compile`: ablated units", forms=["router", "routed_module"])
@pytest.mark.parametrize("form", ["router", "routed_module"])
def test_ablating_after_compiling_is_obeyed_and_undone(form: str) -> None:
    x, labels = batch()
    routed = Routed(form)
    compiled = torch.compile(routed.module, backend="aot_eager", fullgraph=True)
    plain = routed(x, labels, via=compiled)
    with routed.router.ablated("forget"):
        ablated = routed(x, labels, via=compiled)
    off = copy.deepcopy(Routed("oracle").net)
    with torch.no_grad():
        off.decoder.weight[:, 3:5] = 0
    torch.testing.assert_close(ablated, off(x))
    torch.testing.assert_close(routed(x, labels, via=compiled), plain)


@pytest.mark.supports(
    "`torch.compile`: a step on the ablated forward, both blocks inside", forms=["router", "routed_module"]
)
@pytest.mark.parametrize("form", ["router", "routed_module"])
@pytest.mark.parametrize("sites", [None, parameter_forms.sites(SPEC)], ids=["activations", "parameters"])
def test_a_compiled_step_on_the_ablated_forward(form: str, sites: dict[str, gr.Site] | None) -> None:
    """Only what "forget" alone may teach is off; the shared unit learns on."""
    routed = Routed(form, sites=sites)
    off = Routed("oracle", type(routed.net) if sites is None else parameter_forms.Oracle)
    keep = torch.tensor([1.0, 1, 1, 0, 0, 1])
    off.net.encoder.register_forward_hook(lambda module, args, z: z * keep)

    backends = EachBackend("eager", "aot_eager", "inductor")

    @torch.compile(backend=backends, fullgraph=True)
    def ablated(x: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        with routed.router.ablated("forget"):
            return routed(x, labels)

    for seed in range(2):
        x, labels = batch(seed=seed)
        expected = step(off.net, off(x, labels))
        expected = Expected(
            expected, {name: gradient == 0 for name, gradient in expected.items()}
        )  # of units that are off
        for _ in backends.each():
            assert_same(step(routed.net, ablated(x, labels)), expected)
        assert expected["encoder.weight"].any(1).tolist() == [True, True, True, False, False, True]


@pytest.mark.supports("`torch.compile`: graph breaks")
def test_graph_breaks_inside_the_model_keep_the_labels(form: str) -> None:
    class Broken(Net):
        def forward(self, x: torch.Tensor, labels: torch.Tensor | None = None) -> torch.Tensor:
            torch._dynamo.graph_break()
            output = super().forward(x, labels)
            torch._dynamo.graph_break()
            return output

    routed = Routed(form, Broken)
    compiled = torch.compile(routed.module, backend="aot_eager")
    for seed in range(2):
        x, labels = batch(seed=seed)
        assert_same(step(routed.net, routed(x, labels, via=compiled)), expected_gradients(x, labels))


@pytest.mark.supports("`torch.compile`: an unrouted twin compiled before or after", forms=["router", "routed_module"])
@pytest.mark.parametrize("form", ["router", "routed_module"])
@pytest.mark.parametrize("attached_first", [True, False])
def test_code_compiled_for_an_unrouted_twin_does_not_serve_a_routed_model(form: str, attached_first: bool) -> None:
    """Twins share one code object, and by default Dynamo does not look at the hooks that tell them apart."""
    x, labels = batch()
    twin = torch.compile(Net(), backend="aot_eager", fullgraph=True)
    if not attached_first:
        twin(x).sum().backward()
    routed = Routed(form)
    if attached_first:
        twin(x).sum().backward()
    compiled = torch.compile(routed.module, backend="aot_eager", fullgraph=True)
    assert_same(step(routed.net, routed(x, labels, via=compiled)), expected_gradients(x, labels))
    twin.zero_grad()
    twin(x).square().sum().backward()
    assert twin.encoder.weight.grad.all(), "nor the other way round"
