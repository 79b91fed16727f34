"""Where a curve that was measured at some points gets to."""

from collections.abc import Sequence
from itertools import pairwise


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
