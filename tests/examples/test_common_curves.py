"""Curves of several seeds, of which some are longer."""

from itertools import pairwise
from statistics import median

import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure

from common.curves import draw, reached, stops

NUMBERS = st.floats(-1, 1, width=16)
HEIGHTS = st.lists(st.integers(0, 1000), min_size=1, max_size=6, unique=True)


@given(st.lists(st.lists(NUMBERS, min_size=1, max_size=5), min_size=1, max_size=4))
def test_a_curve_is_the_median_and_the_range_of_the_seeds_that_came_so_far(seeds: list[list[float]]) -> None:
    curves = [[{"step": step, "loss": loss} for step, loss in enumerate(each)] for each in seeds]
    axes = Figure().subplots()
    draw(axes, curves, "step", "loss", color="red", label="runs")
    (line,), (band,) = axes.get_lines(), axes.collections
    there = [[each[step] for each in seeds if step < len(each)] for step in range(max(map(len, seeds)))]
    assert list(line.get_xdata()) == list(range(len(there)))
    assert list(line.get_ydata()) == [median(each) for each in there]
    corners = {tuple(each) for each in band.get_paths()[0].vertices.tolist()}
    assert {(step, end(each)) for step, each in enumerate(there) for end in (min, max)} <= corners

    cells = stops(curves, "step", "loss", range(6))
    for cell, each in zip(cells, [*there, *[[]] * (6 - len(there))], strict=True):
        assert (cell == "") == (not each)
        if each:
            number, *of = cell.split()
            assert float(number) == pytest.approx(median(each), abs=0.0051)
            assert of == ([f"({len(each)})"] if len(each) < len(seeds) else [])
            assert number != "-0.00"


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
