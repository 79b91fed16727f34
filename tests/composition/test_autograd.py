"""Plain autograd beyond backward(): double backward, Hessians, batched gradients, forward mode, hooks."""

import pytest
import torch
from torch.autograd import forward_ad

from composition.forms import SOFT, SPEC, WARNINGS_OF_TORCH, Routed, assert_same, batch, expected_gradients

pytestmark = WARNINGS_OF_TORCH
BOTH_SPECS = pytest.mark.parametrize("spec", [SPEC, SOFT], ids=["hard", "soft"])


def loss_of_bias(routed: Routed, x: torch.Tensor, labels: torch.Tensor):
    """The losses of the examples as a function of the encoder's bias."""
    (name,) = (name for name, _ in routed.module.named_parameters() if name.endswith("encoder.bias"))

    def losses(bias: torch.Tensor) -> torch.Tensor:
        def stateless(*args, **kwargs):
            return torch.func.functional_call(routed.module, {name: bias}, args, kwargs)

        return routed(x, labels, via=stateless).square().sum(-1)

    return losses, routed.net.encoder.bias.detach()


@BOTH_SPECS
@pytest.mark.supports("double backward (`create_graph=True`)")
def test_the_gradient_of_the_gradient_is_the_oracles(form: str, spec) -> None:
    x, labels = batch()
    second = {}
    for name in (form, "oracle"):
        routed = Routed(name, spec=spec)
        loss = routed(x, labels).square().sum()
        gradients = torch.autograd.grad(loss, list(routed.net.parameters()), create_graph=True)
        second[name] = routed.learn(sum(gradient.square().sum() for gradient in gradients))
    assert_same(second[form], second["oracle"])


@BOTH_SPECS
@pytest.mark.parametrize("strategy", ["reverse-mode", "forward-mode"])
@pytest.mark.parametrize("vectorize", [False, True])
@pytest.mark.supports("`torch.autograd.functional`: hessian and jacobian, vectorized or not, both strategies")
def test_hessian_and_jacobian_are_the_oracles(form: str, spec, vectorize: bool, strategy: str) -> None:
    if strategy == "forward-mode":
        vectorize = True  # the only way it exists
    x, labels = batch()
    losses, bias = loss_of_bias(Routed(form, spec=spec), x, labels)
    oracle_losses, _ = loss_of_bias(Routed("oracle", spec=spec), x, labels)
    jacobian, hessian = torch.autograd.functional.jacobian, torch.autograd.functional.hessian
    torch.testing.assert_close(
        jacobian(losses, bias, vectorize=vectorize, strategy=strategy),
        jacobian(oracle_losses, bias, vectorize=vectorize, strategy=strategy),
    )
    torch.testing.assert_close(
        hessian(lambda bias: losses(bias).sum(), bias, vectorize=vectorize, outer_jacobian_strategy=strategy),
        hessian(lambda bias: oracle_losses(bias).sum(), bias, vectorize=vectorize, outer_jacobian_strategy=strategy),
    )


@BOTH_SPECS
@pytest.mark.supports("`torch.autograd.grad(is_grads_batched=True)`")
def test_batched_gradients_are_the_oracles(form: str, spec) -> None:
    x, labels = batch()
    rows = []
    for name in (form, "oracle"):
        routed = Routed(name, spec=spec)
        output = routed(x, labels)
        directions = torch.eye(output.numel()).view(-1, *output.shape)
        rows.append(torch.autograd.grad(output, routed.net.encoder.weight, directions, is_grads_batched=True)[0])
    torch.testing.assert_close(*rows)


@BOTH_SPECS
@pytest.mark.supports("forward-mode AD (`torch.autograd.forward_ad`)")
@pytest.mark.parametrize("grad_mode", [torch.enable_grad, torch.no_grad])
def test_the_tangent_is_masked_as_the_gradient_is(form: str, spec, grad_mode) -> None:
    x, labels = batch()
    tangents = []
    for name in (form, "oracle"):
        losses, bias = loss_of_bias(Routed(name, spec=spec), x, labels)
        with grad_mode(), forward_ad.dual_level():
            tangents.append(forward_ad.unpack_dual(losses(forward_ad.make_dual(bias, torch.ones_like(bias)))).tangent)
    torch.testing.assert_close(*tangents)


@pytest.mark.supports("backward through one graph twice (`retain_graph=True`)")
def test_a_second_backward_through_the_same_graph_is_masked_again(routed: Routed) -> None:
    x, labels = batch()
    loss = routed(x, labels).square().sum()
    loss.backward(retain_graph=True)
    routed.zero_grad()
    loss.backward()
    assert_same(routed.gradients(), expected_gradients(x, labels))


@pytest.mark.supports("`saved_tensors_hooks` (`save_on_cpu`)")
def test_saved_tensors_may_be_moved_elsewhere(routed: Routed) -> None:
    x, labels = batch()
    with torch.autograd.graph.save_on_cpu():
        loss = routed(x, labels).square().sum()
    loss.backward()
    assert_same(routed.gradients(), expected_gradients(x, labels))


@pytest.mark.supports("backward in another thread")
def test_backward_may_run_in_another_thread(routed: Routed) -> None:
    from concurrent.futures import ThreadPoolExecutor

    x, labels = batch()
    loss = routed(x, labels).square().sum()
    with ThreadPoolExecutor(1) as pool:
        pool.submit(loss.backward).result()
    assert_same(routed.gradients(), expected_gradients(x, labels))
