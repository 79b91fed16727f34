"""The meta device: shapes go through routing, and a model that is materialised later is routed by real labels."""

import pytest
import torch
from torch._subclasses import FakeTensorMode

import gradroute as gr
from composition.forms import SPEC, Net, Routed, assert_same, batch, expected_gradients


@pytest.mark.supports("meta device")
@pytest.mark.parametrize("labels_on", ["meta", "cpu"])
def test_shapes_go_through_forward_and_backward(routed: Routed, labels_on: str) -> None:
    x, labels = batch()
    routed.module.to("meta")
    output = routed(x.to("meta"), labels.to(labels_on))
    assert output.device.type == "meta"
    output.square().sum().backward()
    assert {name: gradient.shape for name, gradient in routed.gradients().items()} == {
        name: parameter.shape for name, parameter in routed.net.named_parameters()
    }


@pytest.mark.supports("meta device, materialised later (`to_empty`)")
def test_a_model_built_on_meta_routes_once_it_is_real(form: str) -> None:
    def make(route, spec: gr.RoutingSpec) -> Net:
        with torch.device("meta"):
            return Net(route, spec)

    x, labels = batch()
    routed = Routed(form, make)
    routed(x.to("meta"), labels.to("meta"))
    routed.module.to_empty(device="cpu")
    routed.net.load_state_dict(Routed("oracle").net.state_dict())
    routed(x, labels).square().sum().backward()
    assert_same(routed.gradients(), expected_gradients(x, labels))


@pytest.mark.supports("a spec built under `torch.device(...)`")
def test_a_spec_built_under_another_default_device_routes_on_the_cpu(form: str) -> None:
    with torch.device("meta"):
        spec = gr.RoutingSpec(SPEC.routes, SPEC.width, shared=SPEC.shared)
    x, labels = batch()
    routed = Routed(form, spec=spec)
    routed(x, labels).square().sum().backward()
    assert_same(routed.gradients(), expected_gradients(x, labels))


@pytest.mark.supports("`FakeTensorMode`, then real tensors with the same spec")
def test_a_spec_first_used_with_fake_tensors_serves_real_ones(form: str) -> None:
    x, labels = batch()
    spec = gr.RoutingSpec(SPEC.routes, SPEC.width, shared=SPEC.shared)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fake = Routed("functional", spec=spec)
        fake(mode.from_tensor(x), mode.from_tensor(labels)).square().sum().backward()
    routed = Routed(form, spec=spec)
    routed(x, labels).square().sum().backward()
    assert_same(routed.gradients(), expected_gradients(x, labels))
