from statistics import mean

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import ExampleError
from common.tables import check_rows, gather, legend, markdown, mean_and_range, median_and_range, read, spread


def test_cells_show_the_range_and_what_was_never_reached() -> None:
    assert mean_and_range([0.501, 0.499], "{:.1f}") == "0.5"
    assert mean_and_range([10, 30], "{:.1f}") == "20.0 (10.0 to 30.0)"
    assert mean_and_range([-0.01, 0.01], "{:.1f}") == "0.0"
    assert mean_and_range([12, float("inf")], "{:.0f}") == "from 12 to never"
    assert mean_and_range([float("inf")] * 2, "{:.0f}") == "never"


def test_a_median_is_not_moved_by_one_value_far_off() -> None:
    assert median_and_range([3.0, 1.0, 100.0], "{:.0f}") == "3 (1 to 100)"
    assert median_and_range([-0.001], "{:.2f}") == "0.00"


@pytest.mark.parametrize("form", ["{:.2%}", "{:.1f}", "{:.4g}"])
def test_a_cell_of_equal_values_is_the_value(form: str) -> None:
    assert mean_and_range([0.25] * 3, form) == form.format(0.25)
    assert mean_and_range([-1e-9, 0.0], "{:.2%}") == "0.00%"
    assert mean_and_range([-0.25], form) == form.format(-0.25)


def test_a_name_that_is_no_row_is_refused_with_the_known_ones() -> None:
    check_rows(["a", "alias", "b"], ["a", "b"], also=iter(["alias"]))
    with pytest.raises(ExampleError, match="there is no row c, d; choose from a, b"):
        check_rows(["c", "a", "d"], ["a", "b"], also=["alias"])


CELLS = st.text(st.characters(exclude_characters="|\n\r", categories=["L", "N", "P", "Zs"]), max_size=8).map(str.strip)


@given(st.integers(1, 4).flatmap(lambda n: st.lists(st.lists(CELLS, min_size=n, max_size=n), max_size=4)))
def test_a_table_is_read_as_it_was_written(rows: list[list[str]]) -> None:
    headings = [f"heading {column}" for column in range(len(rows[0]) if rows else 2)]
    assert read(markdown(headings, rows)) == [dict(zip(headings, row, strict=True)) for row in rows]


@given(st.lists(st.floats(-1000, 1000), min_size=1, max_size=5), st.sampled_from(["{:.2f}", "{:.1%}"]))
def test_a_cell_says_the_numbers_that_it_was_made_of(values: list[float], form: str) -> None:
    found = spread(mean_and_range(values, form))
    scale, digits = (100, 1) if "%" in form else (1, 2)
    for number, value in zip(found, (mean(values), min(values), max(values)), strict=True):
        assert number == pytest.approx(scale * value, abs=0.51 * 10**-digits)


@pytest.mark.parametrize("cell", ["", "never", "1 to 2", "1 2 3 4"])
def test_a_cell_of_something_else_is_refused(cell: str) -> None:
    with pytest.raises(ValueError, match="neither one number nor one and its range"):
        spread(cell)


def test_runs_alike_but_for_their_seed_make_a_row() -> None:
    one, other = {"name": "a", "what": "first"}, {"name": "b", "what": "second"}
    rows = gather([(one, {"seed": 0, "x": 1}), (other, {"seed": 0, "x": 2}), (one, {"seed": 1, "x": 3})])
    assert rows == [{**one, "seed": [0, 1], "x": [1, 3]}, {**other, "seed": [0], "x": [2]}]
    assert [row["what"] for row in read(legend([*rows, *rows]))] == ["first", "second"]
