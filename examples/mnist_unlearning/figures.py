"""Two pictures: what is left after ablation by fraction of labels, and how fast the digit comes back."""

from collections.abc import Sequence
from statistics import mean
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from common.figures import ACCENT, INK, MUTED, WARM, WIDTH, band, legend_below, plain
from mnist_unlearning.table import uses_labels

#: Name without the fraction: colour, style of the line, what the legend says.
LINES = {
    "parameters": (ACCENT, "-", "parameters routed, ablated"),
    "activations": ("#6aa84f", "-", "activations routed, ablated"),
    "activations-plain": ("#b08900", "--", "activations routed, one pass, ablated"),
    "filtered": (WARM, "-", "filtered: without what is labeled"),
    "filtered-detected": (WARM, "--", "filtered by a detector, too"),
    "placebo": (MUTED, ":", "placebo, ablated"),
}
NEVER_SAW = (INK, "-", "never saw the digit")
SURFACE = (MUTED, "--", "unrouted, output row set to 0")
PANELS = {
    "forgotten": "accuracy on the forgotten digit",
    "separation": "separation of the forgotten digit",
    "kept": "accuracy on the nine kept digits",
}


def by_fraction(summary: Sequence[dict[str, Any]], title: str) -> Figure:
    """A panel for each of three measures; a line through the means, and the range over seeds."""
    figure = _figure(f"After forgetting, by part of the images that is labeled\n{title}")
    fractions = sorted({row["fraction"] for row in summary if uses_labels(row)})
    panels = figure.subplots(len(PANELS), 1, sharex=True)
    for axes, (key, name) in zip(panels, PANELS.items(), strict=True):
        for base, style in LINES.items():
            rows = [row for fraction in fractions for row in summary if row["name"] == f"{base}-{fraction:g}"]
            _band(axes, [fractions.index(row["fraction"]) for row in rows], [row[key] for row in rows], style)
        axes.set_xticks(range(len(fractions)), [f"{fraction:.0%}" for fraction in fractions])
        axes.set_title(name, fontsize=9, loc="left")
        plain(axes, grid="y")
    panels[0].set_ylim(-0.02, 1.02)
    panels[-1].set_xlabel("labeled")
    legend_below(figure, columns=2)
    return figure


def relearning(summary: Sequence[dict[str, Any]], title: str) -> Figure:
    """A panel for each fraction of labels; in all of them the model that never saw the digit."""
    fractions = sorted({row["fraction"] for row in summary if uses_labels(row)}, reverse=True)
    figure = _figure(f"Accuracy on the forgotten digit while the model is fine-tuned\n{title}")
    panels = figure.subplots(len(fractions), 1, sharex=True, squeeze=False)[:, 0]
    for axes, fraction in zip(panels, fractions, strict=True):
        shown = {f"{base}-{fraction:g}": style for base, style in LINES.items()}
        shown = {**shown, "unrouted-row": SURFACE, "filtered-1": NEVER_SAW}
        for row in summary:
            if row["name"] in shown:
                by_step = [list(values) for values in zip(*row["relearning"], strict=True)]
                _band(axes, row["relearning_steps"], by_step, shown[row["name"]])
        axes.set_title(f"{fraction:.0%} labeled", fontsize=9, loc="left")
        axes.set_ylim(-0.02, 1.02)
        plain(axes, grid="y")
    panels[-1].set_xlabel("fine-tuning steps")
    legend_below(figure, columns=2)
    return figure


def _figure(heading: str) -> Figure:
    """Panels stand below each other, so that a phone shows them large enough."""
    figure = Figure(figsize=(WIDTH, 7.6), layout="constrained")
    figure.suptitle(heading, fontsize=9.5)
    return figure


def _band(axes: Axes, x: Sequence[float], values: Sequence[Sequence[float]], style: tuple[str, str, str]) -> None:
    if values:
        colour, line, label = style
        band(axes, x, values, mean, color=colour, linestyle=line, marker="o", markersize=3, label=label)
