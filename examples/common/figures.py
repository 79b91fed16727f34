"""How the pictures of all examples look, and how they are saved."""

from collections.abc import Callable, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any, Literal

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox
from PIL import Image

from common.files import replacing

INK = "#22303c"
MUTED = "#7b8894"
ACCENT = "#2a6f97"
WARM = "#c8553d"
DPI = 200  #: Of the pictures: pixels an inch.
#: Inches: of a picture as wide as this, letters of 9 points can still be read on a phone, where it is 358 pixels wide.
WIDTH = 4.8
SMALL = 8.5  #: Points: the least that is used in one.


def save(figure: Figure, path: Path) -> None:
    """As a PNG of 256 colours, which is a third of the size."""
    content = BytesIO()
    figure.savefig(content, format="png", dpi=DPI, facecolor="white")
    with replacing(path) as temporary:
        Image.open(content).convert("RGB").quantize(256).save(temporary, optimize=True)


def plain(axes: Axes, grid: Literal["x", "y", "both"] | None = None) -> None:
    """No frame and no ticks, and thin lines behind the data where asked for."""
    axes.tick_params(length=0, colors=INK)
    axes.spines[:].set_visible(False)
    if grid is not None:
        axes.grid(axis=grid, color="#e4e8eb", linewidth=0.8)


def band(
    axes: Axes,
    x: Sequence[float],
    values: Sequence[Sequence[float]],
    middle: Callable[[Sequence[float]], float],
    **line: Any,
) -> None:
    """A line through the middle of the values at each x, and their range around it."""
    axes.plot(x, [middle(each) for each in values], **line)
    axes.fill_between(
        x, [min(each) for each in values], [max(each) for each in values], color=line["color"], alpha=0.15
    )


def named(axes: Axes, points: Sequence[tuple[float, float, str, str]]) -> None:
    """Write a name beside each point, where it covers neither another point nor another name.

    Call it last: places are sought in the figure as it is then.

    Args:
        axes: Of the points.
        points: x, y, name and colour of each.
    """
    figure = axes.get_figure(root=True)
    assert figure is not None
    figure.draw_without_rendering()
    taken = [_square(axes.transData.transform((x, y)).tolist(), 5) for x, y, _, _ in points]
    for x, y, name, colour in points:
        text = axes.annotate(name, (x, y), xytext=(0, 0), textcoords="offset points", fontsize=SMALL, color=colour)
        places: list[tuple[int, int, int, Any, tuple[int, int]]] = []
        for distance in (6, 12, 20, 30, 42):
            for right, up in ((1, 0), (1, 1), (0, 1), (-1, 1), (-1, 0), (-1, -1), (0, -1), (1, -1)):
                text.set_position((right * distance, up * distance))
                text.set_horizontalalignment(("center", "left", "right")[right])
                text.set_verticalalignment(("center", "bottom", "top")[up])
                box = text.get_window_extent()
                outside = not (axes.bbox.contains(*box.min) and axes.bbox.contains(*box.max))
                covered = sum(Bbox.intersection(box, other) is not None for other in taken)
                places.append((covered + 100 * outside, distance, len(places), box, (right, up)))
        _, distance, _, box, (right, up) = min(places, key=lambda place: place[:3])
        text.set_position((right * distance, up * distance))
        text.set_horizontalalignment(("center", "left", "right")[right])
        text.set_verticalalignment(("center", "bottom", "top")[up])
        if distance > 12:  # too far to be seen as the point's own
            axes.annotate(
                "",
                (x, y),
                xytext=(right * distance, up * distance),
                textcoords="offset points",
                arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.6},
            )
        taken.append(box)


def _square(middle: Sequence[float], reach: float) -> Bbox:
    x, y = middle
    return Bbox.from_extents(x - reach, y - reach, x + reach, y + reach)


def legend_below(figure: Figure, columns: int) -> None:
    """One legend for the lines of all panels, each once."""
    handles = {str(line.get_label()): line for axes in figure.axes for line in axes.get_lines()}
    figure.legend(
        list(handles.values()), list(handles), loc="outside lower center", ncols=columns, fontsize=8, frameon=False
    )
