"""The operations do what the Functions do, bit for bit, also for signed zeros; where x is inf or NaN, no mask opens."""

import itertools

import pytest
import torch

from gradroute.autograd import _functions as functions
from gradroute.autograd import _operations as operations

VALUES = [0.0, -0.0, 1.0, -2.5, 1e-40, 3e38]
WEIGHTS = [0.0, 1.0, 0.5, -0.5, 2.0, -3.0]


def same_bits(a, b):
    return torch.equal(a.view(torch.int32), b.view(torch.int32))


def gradient(function, *inputs):
    inputs = [x.clone().requires_grad_() for x in inputs]
    y = function(*inputs)
    upstream = torch.linspace(-2, 3, y.numel()).view(y.shape)
    return y.detach(), *torch.autograd.grad(y, inputs, upstream)


@pytest.mark.parametrize("replacing", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bool])
def test_masked_has_the_values_of_x_and_the_gradient_of_the_function(dtype, replacing):
    x, mask = torch.tensor(list(itertools.product(VALUES, WEIGHTS))).unbind(1)
    mask = mask.to(dtype)
    y, grad = gradient(lambda x: operations.masked(x, mask, replacing=replacing), x)
    _, expected = gradient(lambda x: functions.RouteMask.apply(x, mask), x)
    assert same_bits(y, x)
    assert torch.equal(grad, expected)


@pytest.mark.parametrize("upstream", [float("inf"), float("nan")])
def test_masked_gives_exactly_zero_where_the_mask_is(upstream):
    for mask in (torch.tensor([0.0, 0.5, 1.0]), torch.tensor([False, True, True])):
        x = torch.ones(3, requires_grad=True)
        operations.masked(x, mask, replacing=True).backward(torch.full((3,), upstream))
        assert x.grad[0] == 0
        assert not x.grad[1:].isfinite().any()


@pytest.mark.parametrize("weight", [0.0, 0.5, -1.0])
def test_masked_keeps_values_that_are_not_finite_and_teaches_nothing_through_them(weight):
    x = torch.tensor([float("inf"), -float("inf"), float("nan"), 2.0])
    y, grad = gradient(lambda x: operations.masked(x, torch.full((4,), weight), replacing=True), x)
    assert same_bits(y, x)
    assert grad[:3].tolist() == [0, 0, 0]
    assert grad[3] == 3 * weight


def test_masked_is_not_worked_on_in_place_unless_it_replaces():
    for replacing in (False, True):
        h = torch.ones(3, requires_grad=True) * 2
        y = operations.masked(h, torch.tensor([True, False, True]), replacing=replacing)
        if replacing:
            y.relu_()
        else:
            with pytest.raises(RuntimeError, match="view"):
                y.relu_()
        assert h.tolist() == [2, 2, 2]


def test_summed_has_the_first_value_and_teaches_each_part_whole():
    value, *parts = torch.tensor(list(itertools.product(VALUES, repeat=3))).unbind(1)
    y, *gradients = gradient(lambda a, b: operations.summed(value, a, b), *parts)
    _, *expected = gradient(lambda a, b: functions.Sum.apply(value, a, b), *parts)
    assert same_bits(y, value)
    assert all(map(torch.equal, gradients, expected))


@pytest.mark.filterwarnings("ignore:.torch.jit:FutureWarning")  # which forward mode uses itself
@pytest.mark.parametrize("transform", [torch.func.grad, torch.func.jacrev, torch.func.jacfwd])
def test_both_compose_with_transforms(transform):
    x, mask = torch.randn(3), torch.tensor([0.0, 0.5, -2.0])

    def run(masked, summed):
        def loss(x):
            return summed(masked(x, mask).detach(), masked(x, mask), x).square().sum()

        return transform(loss)(x)

    by_operations = run(lambda x, m: operations.masked(x, m, replacing=True), operations.summed)
    by_functions = run(functions.RouteMask.apply, functions.Sum.apply)
    torch.testing.assert_close(by_operations, by_functions)
