"""Names beside points: each can be read."""

from itertools import combinations

import pytest
from matplotlib.figure import Figure
from matplotlib.text import Annotation
from matplotlib.transforms import Bbox

from common.figures import WIDTH, named

#: As in the pictures: some points alone, some nearly on one another, some at an edge.
POINTS = [(25.0, 0.96), (25.1, 0.958), (25.2, 0.962), (22.3, 0.96), (24.9, 0.9), (50.4, 0.8), (50.4, 0.97), (22.3, 0.8)]


@pytest.mark.parametrize("crowded", [1, 10])
def test_no_name_covers_another_or_a_point_or_leaves_the_picture(crowded: int) -> None:
    figure = Figure(figsize=(WIDTH, 4), layout="constrained")
    axes = figure.subplots()
    points = [(x / crowded, y) for x, y in POINTS]
    axes.plot(*zip(*points, strict=True), "o")
    named(axes, [(x, y, f"point {number}", "black") for number, (x, y) in enumerate(points)])
    figure.draw_without_rendering()
    texts = [text for text in axes.texts if isinstance(text, Annotation) and text.get_text()]
    boxes = [text.get_window_extent() for text in texts]
    assert len(boxes) == len(points)
    assert not [pair for pair in combinations(boxes, 2) if Bbox.intersection(*pair)]
    for x, y in axes.transData.transform(points):
        assert not any(box.contains(x, y) for box in boxes)
    assert all(axes.bbox.contains(*box.min) and axes.bbox.contains(*box.max) for box in boxes)
