"""How the pictures of all examples look, and how they are saved."""

from pathlib import Path
from typing import Literal

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
