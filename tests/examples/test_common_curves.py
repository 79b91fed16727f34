from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.curves import reached

HEIGHTS = st.lists(st.integers(0, 1000), min_size=1, max_size=6, unique=True)


@given(HEIGHTS, st.floats(0, 1))
def test_where_a_falling_curve_is_as_low_as_one_of_its_own_heights(heights: list[int], part: float) -> None:
    points = [(float(place), float(height)) for place, height in enumerate(sorted(heights, reverse=True))]
    for place, height in points:
        assert reached(points, height) == place
    for (left, above), (right, below) in pairwise(points):
        value = above + part * (below - above)
        assert reached(points, value) == pytest.approx(left + part * (right - left), abs=1e-6)


@given(HEIGHTS)
def test_what_the_curve_has_not_is_at_its_ends(heights: list[int]) -> None:
    points = [(float(place) + 2, float(height)) for place, height in enumerate(sorted(heights, reverse=True))]
    assert reached(points, max(heights) + 1) == points[0][0]
    assert reached(points, min(heights) - 1) == points[-1][0]


def test_of_a_curve_that_rises_again_the_first_place_counts() -> None:
    assert reached([(0, 4), (1, 2), (2, 3), (3, 1)], 2.5) == 0.75
