"""What the experiments of an audit share."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gradroute.diagnostics.audit._experiments import against_others, noise


@given(st.lists(st.booleans(), min_size=2, max_size=12))
def test_units_are_compared_with_those_that_are_not_among_them(units):
    units = torch.tensor(units)
    pairs = list(against_others(units))
    for mine, others in pairs:
        assert not (mine & others).any()
        assert (mine | others).all()
    compared = torch.stack([mine for mine, _ in pairs]).any(0)
    assert torch.equal(compared, units), "each unit that is asked about, and no other"


@pytest.mark.parametrize("shape", [(), (3,), (4, 5)])
def test_noise_is_far_from_zero_the_same_for_a_seed_and_leaves_torchs_generator_alone(shape):
    x = torch.zeros(shape, dtype=torch.float64)
    before = torch.get_rng_state()
    found = noise(x, 0)
    assert torch.equal(torch.get_rng_state(), before)
    assert found.shape == x.shape
    assert found.dtype == x.dtype
    assert ((found.abs() >= 0.5) & (found.abs() <= 1.5)).all()
    assert torch.equal(noise(x, 0), found)
    assert not torch.equal(noise(torch.zeros(20), 1), noise(torch.zeros(20), 2))
