"""How the pictures of all examples look, and how they are saved."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from common.files import replacing

INK = "#22303c"
MUTED = "#7b8894"
ACCENT = "#2a6f97"
WARM = "#c8553d"
DPI = 150  #: Of the pictures: pixels an inch.


def save(figure: Figure, path: Path) -> None:
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=DPI, facecolor="white")


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


def legend_below(figure: Figure, columns: int) -> None:
    """One legend for the lines of all panels, each once."""
    handles = {str(line.get_label()): line for axes in figure.axes for line in axes.get_lines()}
    figure.legend(
        list(handles.values()), list(handles), loc="outside lower center", ncols=columns, fontsize=8, frameon=False
    )
