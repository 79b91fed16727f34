import pytest

from common.errors import ExampleError
from common.tables import check_rows, mean_and_range, median_and_range


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
