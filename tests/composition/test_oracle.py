"""The tests here are only worth what their oracle is: it must be the identity forward, and a lost mask must show."""

import pytest
import torch

from composition.forms import (
    SOFT,
    SPEC,
    Net,
    Routed,
    assert_backward_routes,
    assert_same,
    batch,
    expected_gradients,
    label_kinds,
    oracle_rows,
)
from gradroute.testing import oracle_mask


@pytest.mark.parametrize("spec", [SPEC, SOFT], ids=["hard", "soft"])
@pytest.mark.parametrize("kind", ["ids", "multi_hot", "mixture"])
def test_every_form_gives_the_oracles_gradient(form: str, spec, kind: str) -> None:
    x, labels = batch()
    routed = Routed(form, spec=spec)
    assert_backward_routes(routed, routed, x, label_kinds(labels)[kind])


@pytest.mark.parametrize("spec", [SPEC, SOFT], ids=["hard", "soft"])
@pytest.mark.parametrize("kind", ["ids", "multi_hot", "mixture"])
def test_the_masks_are_those_of_the_definition(spec, kind: str) -> None:
    _, labels = batch()
    labels = label_kinds(labels)[kind]
    if kind == "multi_hot":
        labels = torch.cat([labels, torch.ones(1, 2).bool()])
    torch.testing.assert_close(oracle_rows(labels, spec), oracle_mask(spec, labels))


@pytest.mark.parametrize("form", ["functional", "router", "routed_module"])
def test_the_smallest_gradient_where_the_mask_is_0_would_be_seen(form: str) -> None:
    x, labels = batch()
    labels = torch.zeros_like(labels)
    routed = Routed(form)
    routed(x, labels).square().sum().backward()
    expected = expected_gradients(x, labels)
    assert_same(routed.gradients(), expected)
    off = SPEC.indices("forget")[0]
    routed.net.encoder.weight.grad[off, 0] = torch.finfo(torch.float32).tiny
    with pytest.raises(AssertionError, match="encoder.weight: gradient where the mask is 0"):
        assert_same(routed.gradients(), expected)


@pytest.mark.parametrize("spec", [SPEC, SOFT], ids=["hard", "soft"])
def test_a_lost_mask_would_be_seen(spec) -> None:
    x, labels = batch()
    unrouted = Routed("functional")
    unrouted.net(x).square().sum().backward()
    with pytest.raises(AssertionError, match="encoder"):
        assert_same(unrouted.gradients(), expected_gradients(x, labels, spec=spec))


def test_other_labels_would_be_seen() -> None:
    (x, labels), (_, others) = batch(seed=0), batch(seed=1)
    with pytest.raises(AssertionError, match="encoder"):
        assert_same(expected_gradients(x, others), expected_gradients(x, labels))


def test_the_oracle_leaves_the_forward_pass_alone() -> None:
    x, labels = batch()
    assert torch.equal(Routed("oracle")(x, labels), Net.forward(Routed("oracle").net, x))
