"""`Plan`: what is to change in the weights when units go."""

import pytest
import torch
from torch import nn

from gradroute.surgery._plan import Cut, Fold, Plan


@pytest.mark.parametrize(
    ("reader", "shape", "dim"),
    [(nn.Linear(4, 3), (2, 4), 1), (nn.Conv2d(4, 3, 2), (2, 4, 5, 6), 1), (nn.Conv1d(4, 3, 1), (2, 4, 5), 1)],
    ids=["linear", "convolution", "convolution over one dimension"],
)
def test_a_fold_puts_into_the_bias_what_the_weight_makes_of_constant_units(reader, shape, dim):
    reader = reader.double()
    constants = torch.tensor([0.0, 0.25, 0.0, -2.0], dtype=torch.float64)
    x = torch.randn(shape, dtype=torch.float64)
    x[:, constants != 0] = 0
    spread = constants.view(-1, *[1] * (len(shape) - 2))
    with torch.no_grad():
        expected = reader(x + spread)
        plan = Plan(cuts=[Cut("weight", dim, constants != 0)], folds=[Fold("weight", dim, "bias", constants)])
        plan.fold(dict(reader.named_parameters()))
        torch.testing.assert_close(reader(x), expected, rtol=1e-12, atol=1e-12)
    assert plan.names == {"weight", "bias"}


def test_a_plan_of_nothing_changes_nothing():
    plan = Plan()
    tensors = {"bias": torch.ones(2)}
    plan.fold(tensors)
    assert plan.names == set()
    assert tensors["bias"].eq(1).all()
