"""`SiteMask`, and the pieces that a routed output is made of."""

import pytest
import torch

import gradroute as gr
from gradroute.errors import LabelError
from gradroute.router._site_mask import SiteMask, detached, product, scaled, times
from gradroute.testing import oracle_mask
from gradroute.testing._oracle import along

SPEC = gr.RoutingSpec({0: gr.Route([0, 1], weight=0.5), 1: 2}, 3)
LABELS = torch.tensor([0, 1, gr.UNLABELED])


def site_mask(labels=LABELS, dim=-1, *, time_first=False):
    return SiteMask(SPEC.masks.resolve(labels), dim, (), "mine", time_first)


@pytest.mark.parametrize(("shape", "dim"), [((3, 3), -1), ((3, 5, 3), 2), ((3, 3, 4), 1), ((3, 3, 4, 5), -3)])
def test_it_multiplies_along_the_dimension_of_the_units(shape, dim):
    x = torch.randn(shape)
    wanted = along(oracle_mask(SPEC, LABELS), x.ndim, dim)
    mask = site_mask(dim=dim)
    assert torch.equal(mask.on(x), x * wanted)
    assert torch.equal(mask.weights(x).expand(shape), wanted.expand(shape))
    assert mask.check(x) == dim % x.ndim


def test_errors_name_the_site():
    with pytest.raises(LabelError, match=r"site 'mine': .*has 4 along dim 1"):
        site_mask().check(torch.ones(3, 4))
    with pytest.raises(
        LabelError, match=r"site 'mine': labels of shape \(3,\) are per example.*labels\.expand\(2, -1\)"
    ):
        site_mask(time_first=True).on(torch.ones(2, 3, 3))
    site_mask(LABELS.expand(2, -1), time_first=True).on(torch.ones(2, 3, 3))


def test_off_the_mask_even_inf_and_nan_become_0():
    mask = torch.tensor([0.0, 1.0, 0.5])
    x = torch.tensor([torch.inf, torch.nan, 2.0])
    found = times(x, mask)
    assert (found[0], found[2]) == (0, 1)
    assert found[1].isnan()
    assert times(x, None) is x


def test_masks_multiply_and_no_mask_is_none():
    factors = [torch.rand(3) for _ in range(3)]
    assert product([]) is None
    assert torch.equal(product(factors), factors[0] * factors[1] * factors[2])


def test_a_part_keeps_its_value_and_learns_by_the_mask():
    x, mask = torch.randn(3, requires_grad=True), torch.tensor([0.0, 1.0, 0.5])
    y = scaled(x, mask)
    assert torch.equal(y, x)
    y.sum().backward()
    assert torch.equal(x.grad, mask)
    assert scaled(x, None) is x
    assert detached(None) is None
    assert not detached(x).requires_grad
