"""nnsight: a trace of a routed model changes neither what is routed nor what is traced.

The body of a traced `with` must stand on lines of its own: nnsight runs it itself.
"""

from __future__ import annotations

import runpy
from pathlib import Path
from types import ModuleType

import pytest
import torch

import gradroute as gr
from composition import parameter_forms
from composition.forms import SPEC, Routed, assert_same, batch, expected_gradients
from gradroute.errors import SiteError
from gradroute.surgery import ablate_

ORDERS = pytest.mark.parametrize("wrapped_first", [True, False], ids=["wrapped before routing", "wrapped after"])
SITES = {"encoder": gr.Site(SPEC)}


def traced(routed: Routed, nnsight: ModuleType, x: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    model = nnsight.NNsight(routed.module)
    kwargs = {"route_labels": labels} if routed.form == "routed_module" else {}
    args = (x, labels) if routed.form == "functional" else (x,)
    with routed.block(labels):
        with model.trace(*args, **kwargs):
            y = nnsight.save(model.output)
        y.square().sum().backward()
    return y


@pytest.mark.supports("nnsight: a trace of a routed model")
def test_a_trace_is_routed(form: str, nnsight: ModuleType) -> None:
    x, labels = batch()
    routed = Routed(form)
    y = traced(routed, nnsight, x, labels)
    assert torch.equal(y, Routed("oracle")(x, labels))
    assert_same(routed.gradients(), expected_gradients(x, labels))


@pytest.mark.parametrize("form", ["router", "routed_module"])
@pytest.mark.supports('level="parameters": nnsight')
def test_a_trace_routes_parameters(form: str, nnsight: ModuleType) -> None:
    x, labels = batch()
    routed = parameter_forms.routed(form)
    traced(routed, nnsight, x, labels)
    torch.testing.assert_close(routed.gradients(), parameter_forms.expected(x, labels))


@ORDERS
@pytest.mark.parametrize("level", ["activations", "parameters"])
def test_it_may_wrap_the_model_before_or_after_the_router_does(
    wrapped_first: bool, level: str, nnsight: ModuleType
) -> None:
    x, labels = batch()
    net = Routed("functional").net
    sites = SITES if level == "activations" else parameter_forms.sites(SPEC)
    if wrapped_first:
        model, router = nnsight.NNsight(net), gr.Router(net, sites)
    else:
        router, model = gr.Router(net, sites), nnsight.NNsight(net)
    with torch.no_grad(), model.trace(x):
        nnsight.save(model.encoder.output)
    with router(labels):
        with model.trace(x):
            y = nnsight.save(model.output)
        y.square().sum().backward()
    gradients = {name: parameter.grad for name, parameter in net.named_parameters()}
    if level == "activations":
        assert_same(gradients, expected_gradients(x, labels))
    else:
        torch.testing.assert_close(gradients, parameter_forms.expected(x, labels))


@pytest.mark.supports("nnsight: backward and gradients inside of a trace", forms=["router"])
def test_gradients_inside_of_a_trace_are_routed(nnsight: ModuleType) -> None:
    x, labels = batch()
    routed = Routed("router")
    model = nnsight.NNsight(routed.net)
    with routed.block(labels), model.trace(x):
        z = model.encoder.output
        loss = model.output.square().sum()
        with loss.backward():
            gradient = nnsight.save(z.grad)
    assert_same(routed.gradients(), expected_gradients(x, labels))
    closed = SPEC.mask(labels) == 0
    assert not gradient[closed].any()
    assert gradient[~closed].all()


def test_an_edit_inside_of_a_trace_is_routed(nnsight: ModuleType) -> None:
    x, labels = batch()
    routed = Routed("router")
    model = nnsight.NNsight(routed.net)
    with routed.block(labels):
        with model.trace(x):
            model.encoder.output = model.encoder.output * 2
            y = nnsight.save(model.output)
        y.square().sum().backward()
    # Twice the output is what an encoder of twice the weights puts out, and the gradient of the half is twice that.
    oracle = Routed("oracle")
    with torch.no_grad():
        for parameter in oracle.net.encoder.parameters():
            parameter.mul_(2)
    oracle(x, labels).square().sum().backward()
    for name, parameter in oracle.net.encoder.named_parameters():
        torch.testing.assert_close(getattr(routed.net.encoder, name).grad, 2 * parameter.grad)


def test_the_output_of_a_site_is_read_before_the_router_and_the_input_behind_it_after(nnsight: ModuleType) -> None:
    x, _ = batch()
    routed = Routed("router")
    model = nnsight.NNsight(routed.net)
    with torch.no_grad(), routed.router.ablated("forget"), model.trace(x):
        before = nnsight.save(model.encoder.output)
        behind = nnsight.save(model.decoder.input)
    off = list(SPEC.indices("forget"))
    assert before[:, off].all()
    assert not behind[:, off].any()


def test_a_router_takes_the_model_and_not_its_wrapper(nnsight: ModuleType) -> None:
    with pytest.raises(SiteError, match=r"model must be a torch.nn.Module; got NNsight"):
        gr.Router(nnsight.NNsight(Routed("functional").net), SITES)


def test_folding_an_ablation_into_a_wrapped_model_is_refused(nnsight: ModuleType) -> None:
    net = Routed("functional").net
    router = gr.Router(net, SITES)
    nnsight.NNsight(net)
    with pytest.raises(SiteError, match="another hook or forward method may edit its output"):
        ablate_(router, "forget")


def test_with_nnsight_imported_a_backward_on_the_line_of_a_with_does_not_run(
    tmp_path: Path, nnsight: ModuleType
) -> None:
    lines = [
        "import contextlib, torch",
        "x = torch.ones(1, requires_grad=True)",
        "with contextlib.nullcontext(): x.sum().backward()",
    ]
    one_line, two_lines = tmp_path / "one_line.py", tmp_path / "two_lines.py"
    one_line.write_text("\n".join(lines) + "\n")
    two_lines.write_text("\n".join(lines).replace(": x", ":\n    x") + "\n")
    assert runpy.run_path(str(one_line))["x"].grad is None
    assert runpy.run_path(str(two_lines))["x"].grad is not None
