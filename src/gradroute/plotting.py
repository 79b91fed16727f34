"""The pictures of reports: heatmaps with labels that a person can read, up to 100 of them, and summaries beyond."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .audit.report import AuditReport, name

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

MAX_LABELS = 100
MAX_UNITS = 200
_MAX_SITES = 6


def plot_audit(report: AuditReport) -> Figure:
    """Heatmaps of an audit: of each site, labels by units; of parameters and of bypasses, by labels.

    At a site: the gradient of each unit as a part of the label's at that site, with a cross where one reaches a unit
    off the route. Of a parameter: as a part of all gradient of the label. Beyond 100 labels or parameters, and 200
    units, neighbours are averaged; beyond 6 sites, the ones with the most gradient off their routes are shown.

    Raises:
        ImportError: matplotlib is missing.
    """
    sites = sorted(report.sites, key=_off_route, reverse=True)[:_MAX_SITES]
    shown = [site for site in report.sites if site in sites]
    labels = [name(label) for label in report.labels]
    figure, axes = subplots(len(shown) + bool(report.parameters) + bool(report.bypasses))
    rest = iter(axes)
    for site, axis in zip(shown, rest, strict=False):
        values = np.nan_to_num(np.array(site.routed, dtype=float))
        norms = np.linalg.norm(values, axis=1, keepdims=True)
        parts = np.divide(values, norms, out=np.zeros_like(values), where=norms > 0)
        heatmap(axis, parts, labels, off_route=~np.array(site.taught) & (parts > 0), unit="part of the gradient here")
        axis.set(title=f"site {site.name or '(model)'}, {site.on}", xlabel="unit", ylabel="label")
    if report.parameters:
        values = np.array([gradients.routed for gradients in report.parameters.values()], dtype=float)
        norms = np.array(report.norms)
        parts = np.divide(values, norms, out=np.zeros_like(values), where=norms > 0)
        axis = axes[len(shown)]
        heatmap(axis, parts, list(report.parameters), labels, unit="part of the label's gradient")
        axis.set(title="parameters", xlabel="label")
    if report.bypasses:
        targets = list(dict.fromkeys((bypass.target, bypass.kind) for bypass in report.bypasses))
        shares = np.zeros((len(targets), len(labels)))
        for bypass in report.bypasses:
            shares[targets.index((bypass.target, bypass.kind)), report.labels.index(bypass.label)] = bypass.share
        rows = [f"{target} ({kind})" for target, kind in targets]
        heatmap(axes[-1], shares, rows, labels, limits=(0.0, float(shares.max())), unit="share")
        axes[-1].set(title="bypasses", xlabel="label")
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
    columns = min(max(n, 1), 3)
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


def _off_route(site: Any) -> float:
    off = ~np.array(site.taught)
    return float(np.nan_to_num(np.array(site.routed))[off].sum())
