"""The pictures of reports: heatmaps with labels that a person can read, up to 100 of them, and summaries beyond."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .report import AuditReport, name

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MAX_LABELS = 100
MAX_UNITS = 200
_MAX_SITES = 8


def plot_audit(report: AuditReport) -> Figure:
    """Heatmaps of an audit, one for each site: labels by units, the part of each label's gradient at each unit.

    What a route leaves out is hatched where a gradient reaches it. Beyond 100 labels, and 200 units, neighbours are
    averaged; beyond 8 sites, the ones with the most gradient off their routes are shown.

    Raises:
        ImportError: matplotlib is missing.
    """
    sites = sorted(report.sites, key=_off_route, reverse=True)[:_MAX_SITES]
    shown = [site for site in report.sites if site in sites]
    figure, axes = subplots(len(shown))
    for site, axis in zip(shown, axes, strict=True):
        values = np.nan_to_num(np.array(site.routed, dtype=float))
        norms = np.linalg.norm(values, axis=1, keepdims=True)
        parts = np.divide(values, norms, out=np.zeros_like(values), where=norms > 0)
        heatmap(axis, parts, [name(label) for label in report.labels], off_route=~np.array(site.taught) & (parts > 0))
        axis.set_title(f"{site.name or '(model)'}, {site.on}", fontsize=10)
        axis.set_xlabel("unit")
        axis.set_ylabel("label")
    figure.suptitle(report._title(), fontsize=11)
    return figure


def subplots(n: int) -> tuple[Figure, list[Axes]]:
    """A figure with axes side by side, which no window shows.

    Raises:
        ImportError: matplotlib is missing.
    """
    try:
        from matplotlib.figure import Figure  # noqa: PLC0415  # optional, and slow to import
    except ImportError as error:
        raise ImportError("plots need matplotlib: pip install gradroute[plot].") from error
    columns = min(max(n, 1), 4)
    rows = -(-max(n, 1) // columns)
    figure = Figure(figsize=(4.5 * columns, 4.0 * rows), layout="constrained")
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
) -> None:
    """A matrix with its rows and columns named; too many are averaged in groups of neighbours."""
    values, rows = _summarised(values, list(rows), MAX_LABELS, axis=0)
    columns = [str(number) for number in range(values.shape[1])] if columns is None else list(columns)
    values, columns = _summarised(values, columns, MAX_UNITS, axis=1)
    image = axis.imshow(values, vmin=limits[0], vmax=limits[1], cmap="viridis", aspect="auto", interpolation="nearest")
    axis.figure.colorbar(image, ax=axis, shrink=0.8)
    for which, names in ((axis.yaxis, rows), (axis.xaxis, columns)):
        # As many names as have room to be read.
        every = max(1, -(-len(names) // 25))
        which.set_ticks(range(0, len(names), every), [text[:16] for text in names[::every]], fontsize=8)
    if max(map(len, columns), default=0) > 3:
        axis.tick_params(axis="x", rotation=90)
    if off_route is not None and off_route.shape == values.shape:
        ys, xs = off_route.nonzero()
        axis.scatter(xs, ys, marker="x", color="red", s=18, linewidths=1)


def _summarised(values: NDArray[Any], names: list[str], limit: int, *, axis: int) -> tuple[NDArray[Any], list[str]]:
    if len(names) <= limit:
        return values, names
    groups = [group for group in np.array_split(np.arange(len(names)), limit) if len(group)]
    means = np.stack([values.take(group, axis=axis).mean(axis=axis) for group in groups], axis=axis)
    merged = [names[g[0]] if len(g) == 1 else f"{names[g[0]]} to {names[g[-1]]}" for g in groups]
    return means, merged


def _off_route(site: Any) -> float:
    off = ~np.array(site.taught)
    return float(np.nan_to_num(np.array(site.routed))[off].sum())
