"""Entries of a parameter, by rows or a mask: what is taken, put back and zeroed is these entries and no other."""

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.tensor import DTensor, Shard, init_device_mesh
from torch.testing._internal.distributed.fake_pg import FakeStore

from gradroute.errors import UsageError
from gradroute.optim import Hold
from gradroute.optim._held_entries import HeldEntries, ZeroHeldGradient, has_other_hooks, is_held, without_held

ROWS = {
    "int": (1, [1]),
    "slice": (slice(-2, None), [3, 4]),
    "list": ([4, 0, 4], [0, 4]),
    "range": (range(1, 4), [1, 2, 3]),
    "tensor": (torch.tensor([2, 0]), [0, 2]),
    "nothing": ([], []),
    "mask of rows": (torch.tensor([True, False, False, True, False]), [0, 3]),
    "list of bools": ([False, True, False, False, True], [1, 4]),
    "mask of whole rows": (torch.tensor([[True], [False], [True], [False], [False]]).expand(5, 3), [0, 2]),
    "everything": (torch.ones(5, 3, dtype=torch.bool), [0, 1, 2, 3, 4]),
}
MASK = torch.tensor([[True, False, False]] * 2 + [[False, True, True]] * 3)


def held_of(given):
    """The mask that a form of rows, or of a mask, stands for."""
    if given is MASK:
        return MASK
    mask = torch.zeros(5, 3, dtype=torch.bool)
    mask[given] = True
    return mask


@pytest.mark.parametrize(
    ("given", "expected"), [*ROWS.values(), (MASK, MASK), (MASK.tolist(), MASK)], ids=[*ROWS, "mask", "nested list"]
)
@pytest.mark.parametrize("layout", ["contiguous", "transposed"])
def test_what_is_put_back_or_zeroed_is_the_held_entries_alone(given, expected, layout):
    mask = expected if isinstance(expected, torch.Tensor) else held_of(expected)
    parameter = nn.Parameter(torch.randn(5, 3) if layout == "contiguous" else torch.randn(3, 5).T)
    held = HeldEntries(parameter, given)
    before, after = parameter.detach().clone(), torch.randn(5, 3)
    taken = held.take(parameter.detach())
    parameter.data.copy_(after)
    held.put(parameter.detach(), taken)
    assert torch.equal(parameter, torch.where(mask, before, after))
    parameter.grad = after.clone()
    held.zero_gradient(parameter)
    assert torch.equal(parameter.grad, after.masked_fill(mask, 0))
    assert torch.equal(held.zeroed(after), after.masked_fill(mask, 0))


@pytest.mark.parametrize("given", [[0, 3], MASK], ids=["rows", "mask"])
def test_of_a_sparse_gradient_held_rows_are_left_out_and_held_entries_are_0(given):
    mask = held_of(given)
    parameter = nn.Parameter(torch.randn(5, 3))
    held = HeldEntries(parameter, given)
    rows, values = torch.tensor([[3, 1, 3, 2]]), torch.randn(4, 3)
    parameter.grad = torch.sparse_coo_tensor(rows, values, (5, 3), check_invariants=True)
    dense = parameter.grad.to_dense()
    held.zero_gradient(parameter)
    assert torch.equal(parameter.grad.to_dense(), dense.masked_fill(mask, 0))
    kept = parameter.grad.coalesce().indices()[0].tolist()
    assert kept == [row for row in (1, 2, 3) if not mask[row].all()]


def test_a_sparse_gradient_of_single_entries_is_refused():
    parameter = nn.Parameter(torch.randn(5, 3))
    parameter.grad = torch.randn(5, 3).to_sparse()
    with pytest.raises(UsageError, match="2 sparse dimensions.*whole rows"):
        HeldEntries(parameter, [0]).zero_gradient(parameter)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (5, r"do not fit a parameter of shape \(5, 3\): index 5 is outside.*integers from 0 to 4"),
        (-1, "index -1 is outside"),
        ([0, 7], "index 7 is outside"),
        (slice(0, 6), "reaches outside the width of 5"),
        ("rows", "an index must be an integer.*Expected a bool mask of that shape, or rows"),
        (1.5, "an index must be an integer"),
        (torch.ones(5), "an index must be an integer"),
        (None, "an index must be an integer"),
        (
            torch.ones(3, dtype=torch.bool),
            r"mask of shape \(3,\) does not fit a parameter of shape \(5, 3\).*\(5,\) for",
        ),
        (torch.ones(5, 1, dtype=torch.bool), r"mask of shape \(5, 1\) does not fit"),
        (torch.ones(5, 3, 1, dtype=torch.bool), r"mask of shape \(5, 3, 1\) does not fit"),
        (torch.tensor(True), r"mask of shape \(\) does not fit"),
        (nn.Parameter(torch.ones(5, 3)), "plain tensor of the whole parameter's shape; got a Parameter"),
    ],
)
def test_what_does_not_fit_is_refused(given, message):
    with pytest.raises(UsageError, match=message):
        HeldEntries(nn.Parameter(torch.randn(5, 3)), given)


def test_a_parameter_without_dimensions_is_held_by_a_mask_without_dimensions():
    parameter = nn.Parameter(torch.tensor(2.0))
    held = HeldEntries(parameter, torch.tensor(True))
    taken = held.take(parameter.detach())
    parameter.data.fill_(5)
    held.put(parameter.detach(), taken)
    assert parameter == 2
    with pytest.raises(UsageError, match="without dimensions has no rows"):
        HeldEntries(parameter, 0)


@pytest.mark.parametrize("shape", [(0, 3), (3, 0)])
def test_of_a_parameter_without_entries_nothing_is_held(shape):
    parameter = nn.Parameter(torch.zeros(shape))
    for given in (torch.ones(shape, dtype=torch.bool), slice(0, shape[0]), torch.ones(shape[0], dtype=torch.bool)):
        held = HeldEntries(parameter, given)
        parameter.grad = torch.zeros(shape)
        held.zero_gradient(parameter)
        held.put(parameter.detach(), held.take(parameter.detach()))
        assert parameter.shape == shape


@pytest.fixture
def rank_of_four(request):
    """One process that takes itself for one of four, which never speak to each other."""
    dist.init_process_group("fake", store=FakeStore(), rank=request.param, world_size=4)
    yield request.param
    dist.destroy_process_group()


@pytest.mark.parametrize("rank_of_four", range(4), indirect=True)
@pytest.mark.parametrize("dim", [0, 1])
@pytest.mark.parametrize("given", [[0, 2], MASK], ids=["rows", "mask"])
def test_a_process_holds_its_part_of_what_is_given_for_the_whole(rank_of_four, given, dim):
    """As `torch.chunk` divides it, with shorter parts and empty ones at the end."""
    size = (5, 3)[dim]
    chunks = torch.arange(size).chunk(4)
    here = chunks[rank_of_four] if rank_of_four < len(chunks) else torch.arange(0)
    mask = held_of(given).index_select(dim, here)
    mesh = init_device_mesh("cpu", (4,))
    parameter = DTensor.from_local(torch.randn(mask.shape), mesh, [Shard(dim)], shape=(5, 3), stride=(3, 1))
    held = HeldEntries(parameter, given)
    before, after = parameter.to_local().clone(), torch.randn(mask.shape)
    taken = held.take(parameter)
    parameter.to_local().copy_(after)
    held.put(parameter, taken)
    assert torch.equal(parameter.to_local(), torch.where(mask, before, after))


def test_what_is_known_of_a_parameter_by_its_hooks():
    parameter = nn.Parameter(torch.randn(5, 3))
    gradient = torch.ones(5, 3)
    assert not is_held(parameter)
    assert not has_other_hooks(parameter)
    assert without_held(parameter, gradient) is gradient
    with Hold(torch.optim.SGD([parameter], lr=0.1), {parameter: MASK}):
        assert is_held(parameter)
        assert not has_other_hooks(parameter)
        assert torch.equal(without_held(parameter, gradient), (~MASK).float())
        parameter.register_post_accumulate_grad_hook(lambda _: None)
        assert has_other_hooks(parameter)
    assert not is_held(parameter)


def test_a_gradient_of_another_shape_is_left_for_the_step_to_complain_of():
    parameter = nn.Parameter(torch.randn(2, 3))
    parameter.grad = torch.ones(2, 3)
    ZeroHeldGradient(HeldEntries(nn.Parameter(torch.randn(5, 3)), 0))(parameter)
    assert parameter.grad.all()
