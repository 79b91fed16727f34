"""Gradient accumulation: batches with other labels add up as the oracle's do, in whatever order backward comes."""

import pytest
import torch

import gradroute as gr
from composition.forms import Routed, assert_same, batch, expected_gradients

BATCHES = [batch(n, seed) for n, seed in [(8, 0), (4, 1), (12, 2)]]


def joined() -> dict[str, torch.Tensor]:
    x, labels = (torch.cat(parts) for parts in zip(*BATCHES, strict=True))
    return expected_gradients(x, labels)


@pytest.mark.supports("gradient accumulation with mixed labels")
def test_accumulated_gradients_are_those_of_the_joined_batch(routed: Routed) -> None:
    for x, labels in BATCHES:
        routed(x, labels).square().sum().backward()
    assert_same(routed.gradients(), joined(), rtol=1e-4, atol=1e-5)


@pytest.mark.supports("several forwards before the backwards")
@pytest.mark.parametrize("order", [[0, 1, 2], [2, 1, 0], [1, 2, 0]])
def test_the_order_of_the_backwards_does_not_matter(routed: Routed, order: list[int]) -> None:
    losses = [routed(x, labels).square().sum() for x, labels in BATCHES]
    for position in order:
        losses[position].backward()
    assert_same(routed.gradients(), joined(), rtol=1e-4, atol=1e-5)


@pytest.mark.supports("several forwards before one backward")
def test_one_backward_serves_several_forwards(routed: Routed) -> None:
    sum(routed(x, labels).square().sum() for x, labels in BATCHES).backward()
    assert_same(routed.gradients(), joined(), rtol=1e-4, atol=1e-5)


@pytest.mark.refuses("labels changed in place between forward and backward", "LabelError")
def test_a_label_buffer_that_is_used_again_before_backward_raises(routed: Routed) -> None:
    x, labels = batch()
    labels = labels.clamp(min=0)
    loss = routed(x, labels).square().sum()
    labels.copy_(1 - labels)
    with pytest.raises(gr.RoutingError, match=r"changed in place.*labels\.clone\(\)"):
        loss.backward()


def test_labels_that_had_to_be_looked_up_are_obeyed_as_they_were_in_forward(routed: Routed) -> None:
    """With unlabeled data among them the labels are translated in forward, and the user's tensor is not needed again."""
    x, labels = batch()
    expected = expected_gradients(x, labels)
    loss = routed(x, labels).square().sum()
    labels.copy_(batch(seed=1)[1])
    loss.backward()
    assert_same(routed.gradients(), expected)


@pytest.mark.supports("a label buffer used again after backward")
def test_a_label_buffer_may_be_used_again_after_backward(routed: Routed) -> None:
    buffer = torch.empty(8, dtype=torch.long)
    for seed in range(3):
        routed.zero_grad()
        x, labels = batch(seed=seed)
        buffer.copy_(labels)
        routed(x, buffer).square().sum().backward()
        assert_same(routed.gradients(), expected_gradients(x, labels))


@pytest.mark.supports("optimizer step inside backward (`register_post_accumulate_grad_hook`)")
def test_an_optimizer_inside_backward_sees_routed_gradients(routed: Routed) -> None:
    states = []
    for model in (routed, Routed("oracle")):
        for parameter in model.net.parameters():
            optimizer = torch.optim.SGD([parameter], lr=0.1)

            def step(parameter: torch.Tensor, optimizer: torch.optim.Optimizer = optimizer) -> None:
                optimizer.step()
                optimizer.zero_grad()

            parameter.register_post_accumulate_grad_hook(step)
        for x, labels in BATCHES:
            model(x, labels).square().sum().backward()
        states.append(model.net.state_dict())
    assert_same(*states)
