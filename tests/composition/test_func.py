"""torch.func: every transform of a routed loss is that of the oracle's loss."""

import pytest
import torch
from torch.utils._pytree import tree_leaves

import gradroute as gr
from composition.forms import (
    BEFORE_2_10,
    SOFT,
    SPEC,
    WARNINGS_OF_TORCH,
    Routed,
    assert_same,
    batch,
    expected_gradients,
    functional_loss,
    label_kinds,
)
from composition.transforms import PER_EXAMPLE, TRANSFORMS

pytestmark = WARNINGS_OF_TORCH
CASES = [
    pytest.param(transform, id=name, marks=pytest.mark.supports(f"`torch.func`: {name}"))
    for name, transform in TRANSFORMS.items()
]


@pytest.mark.parametrize("spec", [SPEC, SOFT], ids=["hard", "soft"])
@pytest.mark.parametrize("transform", CASES)
def test_a_transform_of_the_routed_loss_is_that_of_the_oracles(form: str, transform, spec) -> None:
    x, labels = batch()
    actual = transform(*functional_loss(Routed(form, spec=spec)), x, labels)
    expected = transform(*functional_loss(Routed("oracle", spec=spec)), x, labels)
    torch.testing.assert_close(tree_leaves(actual), tree_leaves(expected))


@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS)
def test_a_mask_lost_in_a_transform_would_be_seen(transform) -> None:
    x, labels = batch()
    routed = transform(*functional_loss(Routed("oracle")), x, labels)
    unrouted = transform(*functional_loss(Routed("oracle")), x, torch.full_like(labels, gr.UNLABELED))
    with pytest.raises(AssertionError, match="not close"):
        torch.testing.assert_close(tree_leaves(routed), tree_leaves(unrouted))


@pytest.mark.parametrize("kind", ["multi_hot", "mixture"])
def test_per_example_gradients_take_every_kind_of_label(form: str, kind: str) -> None:
    x, labels = batch()
    labels = label_kinds(labels)[kind]
    actual, expected = (
        TRANSFORMS["vmap(grad)"](*functional_loss(Routed(name)), x[:, None], labels[:, None])
        for name in (form, "oracle")
    )
    torch.testing.assert_close(tree_leaves(actual), tree_leaves(expected))


def test_per_example_gradients_sum_to_the_gradient_of_the_batch(routed: Routed) -> None:
    x, labels = batch()
    loss, params = functional_loss(routed)
    each = torch.func.vmap(torch.func.grad(loss), PER_EXAMPLE, chunk_size=3)(params, x, labels)
    total = {name.removeprefix("module."): gradient.sum(0) for name, gradient in each.items()}
    assert_same(total, expected_gradients(x, labels), rtol=1e-4, atol=1e-5)


@pytest.mark.supports("`torch.func`: plain backward through vmap")
def test_backward_through_a_vmapped_model_routes(routed: Routed) -> None:
    x, labels = batch()
    torch.func.vmap(lambda x, labels: routed(x, labels).square().sum())(x, labels).sum().backward()
    assert_same(routed.gradients(), expected_gradients(x, labels))


def test_a_spec_first_used_inside_a_transform_serves_outside_and_in_other_transforms(form: str) -> None:
    x, labels = batch()
    spec = gr.RoutingSpec(SPEC.routes, SPEC.width, shared=SPEC.shared)  # nothing cached yet
    for name in ("vmap(grad)", "jacfwd", "grad(grad)"):
        actual, expected = (
            TRANSFORMS[name](*functional_loss(Routed(which, spec=spec)), x, labels) for which in (form, "oracle")
        )
        torch.testing.assert_close(tree_leaves(actual), tree_leaves(expected))
    routed = Routed(form, spec=spec)
    routed(x, labels).square().sum().backward()
    assert_same(routed.gradients(), expected_gradients(x, labels))
    assert not any(torch._C._functorch.is_functorch_wrapped_tensor(kept) for kept in spec.masks._moved.values())


def test_an_unknown_label_inside_a_transform_raises(routed: Routed) -> None:
    x, labels = batch()
    labels[2] = 5
    # Before 2.10 nobody can look at labels there, and it is the look-up that fails.
    error, words = (RuntimeError, None) if BEFORE_2_10 else (gr.RoutingError, "unknown label 5")
    with pytest.raises(error, match=words):
        TRANSFORMS["vmap(grad)"](*functional_loss(routed), x, labels)
