"""What changes while training goes on: curves of several seeds, of which some are longer, and where one gets to."""

from collections.abc import Sequence
from itertools import pairwise, zip_longest
from statistics import median
from typing import Any

from matplotlib.axes import Axes

from common.figures import band
from common.tables import unsigned_zero

Curves = Sequence[Sequence[dict[str, Any]]]


def draw(axes: Axes, curves: Curves, x: str, y: str, **line: Any) -> None:
    """The median of the seeds that have come so far, and their range."""
    points = [[at for at in each if at] for each in zip_longest(*curves)]
    band(axes, [each[0][x] for each in points], [[at[y] for at in each] for each in points], median, **line)


def stops(curves: Curves, x: str, y: str, shown: Sequence[int]) -> list[str]:
    """The medians where x is one of those shown; with how many seeds have come so far, where not all have."""
    cells = []
    for number in shown:
        values = [at[y] for curve in curves for at in curve if at[x] == number]
        seeds = f" ({len(values)})" if len(values) < len(curves) else ""
        cells.append(f"{unsigned_zero(f'{median(values):.2f}')}{seeds}" if values else "")
    return cells


def reached(points: Sequence[tuple[float, float]], value: float) -> float:
    """The first place at which a falling curve is as low as the value; straight lines lead from point to point.

    Args:
        points: Place and height of one or more, by place.
        value: A height. What is above the first point is said to be there, and what is below all, at the last one.
    """
    if value >= points[0][1]:
        return points[0][0]
    for (left, above), (right, below) in pairwise(points):
        if below <= value:
            return left + (above - value) / (above - below) * (right - left)
    return points[-1][0]
