"""Units as cells: which are open, which are always taught together, and where their entries are."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import gradroute as gr
from gradroute.errors import UsageError
from gradroute.optim._cells import cohort_of, open_cells, part_of, part_of_gradient, put_part, taught_together
from gradroute.testing import specs

ROWS_AND_COLUMNS = [{0: (0,)}, {1: (1,)}]  # closed where the row is closed, or the column
BOTH_PLACES = [{0: (0,), 1: (1,)}]  # closed where row and column are


def test_open_cells_are_those_that_no_block_closes():
    parameter = torch.zeros(3, 2, 4)
    rows, columns = torch.tensor([True, False, True]), torch.tensor([False, True])
    assert open_cells(parameter, [{0: (0,)}], [rows]).flatten().tolist() == rows.tolist()
    either = open_cells(parameter, ROWS_AND_COLUMNS, [rows, columns])
    assert torch.equal(either, (rows[:, None] & columns)[..., None])
    both = open_cells(parameter, BOTH_PLACES, [rows, columns])
    assert torch.equal(both, (rows[:, None] | columns)[..., None])
    assert open_cells(parameter, [{0: (0, 1)}], [rows, ~rows]).all()  # taught through one of its groups is enough
    assert open_cells(parameter, BOTH_PLACES, []).shape == (3, 2, 1)
    assert open_cells(parameter, [{None: (0,)}], [torch.tensor([False])]).tolist() == [[[False]]]


@given(st.lists(st.booleans(), min_size=12, max_size=12).filter(any), st.booleans())
def test_a_part_is_taken_and_put_back_and_nothing_else(chosen, transposed):
    cells = torch.tensor(chosen).view(3, 4, 1)
    tensor = torch.randn(2, 4, 3).transpose(0, 2) if transposed else torch.randn(3, 4, 2)
    cohort = cohort_of(tensor, cells)
    before = tensor.clone()
    part = part_of(tensor, cohort.entries).clone()
    assert sorted(part.flatten().tolist()) == sorted(before[cells.expand(3, 4, 2)].tolist())
    tensor.zero_()
    put_part(tensor, cohort.entries, part)
    assert torch.equal(tensor, torch.where(cells, before, 0))


def test_consecutive_rows_are_a_view():
    tensor = torch.randn(5, 3)
    for rows, view in (([1, 2], True), ([1, 3], False), ([0, 1, 2, 3, 4], True)):
        cells = torch.zeros(5, 1, dtype=torch.bool)
        cells[rows] = True
        part = part_of(tensor, cohort_of(tensor, cells).entries)
        assert (part.untyped_storage().data_ptr() == tensor.untyped_storage().data_ptr()) is view


@given(specs(max_width=6))
def test_units_that_are_taught_together_have_the_same_weight_for_each_label(spec):
    blocks = taught_together(torch.zeros(2, spec.width), [{1: (0,)}], [spec.masks.rows])
    assert torch.stack(blocks).sum(0).eq(1).all()
    for block in blocks:
        assert block.shape == (1, spec.width)
        columns = spec.table[:, block.flatten()]
        assert columns.eq(columns[:, :1]).all()
    assert len(blocks) == len({tuple(spec.table[:, unit].tolist()) for unit in range(spec.width)})


def test_of_rows_and_columns_each_combination_is_a_block():
    spec = gr.RoutingSpec({"a": [0, 1], "b": [2]}, 3)
    tables = [spec.masks.rows] * 2
    sizes = [int(block.sum()) for block in taught_together(torch.zeros(3, 3), ROWS_AND_COLUMNS, tables)]
    assert sorted(sizes) == [1, 2, 2, 4]


@pytest.mark.parametrize("dim", [0, 1])
@pytest.mark.parametrize("units", [[1, 2], [0, 3]])
def test_a_sparse_gradient_is_cut_up_as_a_dense_one(dim, units):
    rows, values = torch.tensor([[3, 1, 3]]), torch.randn(3, 4)
    gradient = torch.sparse_coo_tensor(rows, values, (4, 4), check_invariants=True)
    cells = torch.zeros(4, dtype=torch.bool).view([-1 if d == dim else 1 for d in range(2)])
    cells.view(-1)[units] = True
    entries = cohort_of(torch.zeros(4, 4), cells).entries
    part = part_of_gradient(gradient, entries)
    assert part.is_sparse
    torch.testing.assert_close(part.to_dense(), part_of_gradient(gradient.to_dense(), entries))


def test_of_cells_that_are_no_block_a_sparse_gradient_is_refused():
    cells = torch.tensor([[True, False], [True, True]])
    gradient = torch.ones(2, 2).to_sparse(1)
    with pytest.raises(UsageError, match="cannot be cut up by units of both rows and columns"):
        part_of_gradient(gradient, cohort_of(torch.zeros(2, 2), cells).entries)
