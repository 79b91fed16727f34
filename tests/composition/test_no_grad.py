"""Where nothing learns, routing costs nothing: no operation, no copy, no warning."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import gradroute as gr
from composition.forms import SPEC, Expected, Routed, assert_same, batch, expected_gradients

MODES = [
    pytest.param(mode, id=mode.__name__, marks=pytest.mark.supports(f"`torch.{mode.__name__}`: free of cost"))
    for mode in (torch.no_grad, torch.inference_mode)
]


class Operations(TorchDispatchMode):
    """Counts what reaches the dispatcher."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        self.seen.append(str(operation))
        return operation(*args, **(kwargs or {}))


def operations(run) -> list[str]:
    with Operations() as counted:
        run()
    return counted.seen


@pytest.mark.parametrize("mode", MODES)
def test_without_gradients_the_model_runs_the_same_operations(routed: Routed, mode) -> None:
    x, labels = batch()
    plain = Routed("oracle").net
    with mode(), routed.block(labels):
        # Looking at the labels is all that remains, and is over when a block begins.
        extra = len(operations(lambda: SPEC.masks.resolve(labels))) if routed.form != "router" else 0
        seen = operations(lambda: routed.call(routed.module, x, labels))
        bare = operations(lambda: plain(x))
    assert len(seen) == len(bare) + extra
    assert [name for name in seen if name in bare] == bare


@pytest.mark.parametrize("mode", MODES)
def test_without_gradients_a_routed_tensor_is_the_tensor_itself(mode) -> None:
    _, labels = batch()
    z = torch.randn(8, SPEC.width, requires_grad=True)
    with mode():
        assert gr.route(z, labels, SPEC) is z


@pytest.mark.parametrize("mode", MODES)
def test_evaluation_without_labels_runs_the_same_operations(routed: Routed, mode) -> None:
    x, _ = batch()
    plain = Routed("oracle").net
    with mode():
        assert operations(lambda: routed.module(x)) == operations(lambda: plain(x))


@pytest.mark.supports("tensors made in `torch.inference_mode`, used for training")
def test_labels_and_tables_made_in_inference_mode_serve_training(form: str) -> None:
    spec = gr.RoutingSpec(SPEC.routes, SPEC.width, shared=SPEC.shared)
    x, labels = batch()
    routed = Routed(form, spec=spec)
    with torch.inference_mode():
        routed(x, labels)
        frozen = labels.clone()
    routed(x, frozen).square().sum().backward()
    assert_same(routed.gradients(), expected_gradients(x, labels))


@pytest.mark.supports("frozen models (`requires_grad_(False)`)")
def test_a_frozen_model_routes_nothing_and_does_not_complain(routed: Routed) -> None:
    x, labels = batch()
    routed.net.requires_grad_(False)
    assert not routed(x, labels).requires_grad


@pytest.mark.supports("frozen layers before the site")
def test_a_site_behind_frozen_layers_still_routes_what_learns(routed: Routed) -> None:
    x, labels = batch()
    routed.net.encoder.weight.requires_grad_(False)
    routed(x, labels).square().sum().backward()
    expected = expected_gradients(x, labels)
    assert_same(routed.gradients(), Expected({**expected, "encoder.weight": None}, expected.closed))
