"""The pictures of reports: heatmaps with labels that a person can read, up to 100 of them, and summaries beyond."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import UsageError, missing_package

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

MAX_LABELS = 100
MAX_UNITS = 200


def subplots(n: int, *, columns: int = 3) -> tuple[Figure, list[Axes]]:
    """A figure with axes side by side, which no window shows.

    Args:
        n: How many axes.
        columns: At most so many stand in a row.

    Raises:
        UsageError: There is no room for one in a row.
        ImportError: matplotlib is missing.
    """
    if columns < 1:
        raise UsageError(f"columns is how many pictures stand side by side: at least 1; got {columns}.")
    try:
        from matplotlib.figure import Figure  # noqa: PLC0415  # optional, and slow to import
    except ImportError as error:
        raise ImportError(missing_package("plots", "matplotlib", "plot")) from error
    columns = min(max(n, 1), columns)
    rows = -(-max(n, 1) // columns)
    figure = Figure(figsize=(5.5 * columns, 4.0 * rows), layout="constrained")
    axes = [figure.add_subplot(rows, columns, position + 1) for position in range(n)]
    return figure, axes


def heatmap(
    axis: Axes,
    values: NDArray[Any],
    rows: Sequence[str],
    columns: Sequence[str] | None = None,
    *,
    off_route: NDArray[Any] | None = None,
    limits: tuple[float, float] = (0.0, 1.0),
    cmap: str = "viridis",
    unit: str = "",
) -> None:
    """A matrix with its rows and columns named, and a scale in this unit; too many are averaged in groups."""
    values, rows = _summarised(values, list(rows), MAX_LABELS, axis=0)
    columns = [str(number) for number in range(values.shape[1])] if columns is None else list(columns)
    values, columns = _summarised(values, columns, MAX_UNITS, axis=1)
    image = axis.imshow(values, vmin=limits[0], vmax=limits[1], cmap=cmap, aspect="auto", interpolation="nearest")
    axis.figure.colorbar(image, ax=axis, shrink=0.8, label=unit)
    for which, names, room in ((axis.yaxis, rows, 25), (axis.xaxis, columns, 15)):
        # As many names as have room to be read.
        every = max(1, -(-len(names) // room))
        which.set_ticks(range(0, len(names), every), [_short(text) for text in names[::every]], fontsize=8)
    if max(map(len, columns), default=0) > 3:
        axis.tick_params(axis="x", rotation=90)
    if off_route is not None and off_route.shape == values.shape:
        ys, xs = off_route.nonzero()
        axis.scatter(xs, ys, marker="x", color="red", s=18, linewidths=1)


def _short(text: str, limit: int = 40) -> str:
    """A name cut in the middle, since qualified names differ at their ends."""
    return text if len(text) <= limit else f"{text[: limit // 4]}...{text[-(limit * 3 // 4 - 3) :]}"


def _summarised(values: NDArray[Any], names: list[str], limit: int, *, axis: int) -> tuple[NDArray[Any], list[str]]:
    if len(names) <= limit:
        return values, names
    size = -(-len(names) // limit)
    groups = [np.arange(start, min(start + size, len(names))) for start in range(0, len(names), size)]
    means = np.stack([values.take(group, axis=axis).mean(axis=axis) for group in groups], axis=axis)
    merged = [names[g[0]] if len(g) == 1 else f"{names[g[0]]} to {names[g[-1]]}" for g in groups]
    return means, merged
