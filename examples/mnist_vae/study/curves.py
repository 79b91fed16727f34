"""The pictures of a comparison. Each function draws rows of a table, and returns a figure."""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from common.figures import ACCENT, INK, MUTED, SMALL, WARM, WIDTH, named, plain
from mnist_vae.study.compare import Measured

#: Of each kind of row in `mnist_vae.study.tradeoff`: what changes along it, its name in the picture, its colour.
KINDS = {
    "units": ("units", "units per digit", ACCENT),
    "kl": ("kl_weight", "KL weight of style units", "#5c8a4d"),
    "shared": ("shared", "shared style units", "#8a6bb0"),
    "slices": ("units", "units per digit, no presence unit", WARM),
}
DIGITS = 10


def label_fractions(rows: Sequence[Measured], title: str) -> Figure:
    """Accuracy against the part of the images that has a label, a line for each rule for the others."""
    figure, axes = _figure("Accuracy by the part of the training images whose label routes", title)
    for rule, text, colour in (
        ("left out", "the others are left out", MUTED),
        ("loudest", "after one labeled epoch, the others teach\nthe unit that speaks loudest", ACCENT),
        ("all", "the others teach all units", WARM),
    ):
        shown = [row for row in rows if _rule(row) == rule and row.control.config.label_fraction < 1]
        shown += [row for row in rows if row.control.name == "routed"]
        shown.sort(key=lambda row: row.control.config.label_fraction)
        parts = [row.control.config.label_fraction for row in shown]
        found = [row.found["argmax_accuracy"] for row in shown]
        axes.plot(parts, [each.middle for each in found], color=colour, marker="o", label=text)
        axes.vlines(parts, [each.least for each in found], [each.most for each in found], color=colour, linewidth=1)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:.0%}")
    axes.tick_params(which="minor", length=0)
    axes.set_xlabel("labeled part of the training set", color=INK)
    axes.set_ylim(0, 100)
    _legend(figure, axes)
    return figure


def scatter(rows: Sequence[Measured], title: str) -> Figure:
    """Accuracy against reconstruction error, with their ranges: a named point for each row that has all labels."""
    figure, axes = _figure("What routing does, and what it costs", title)
    points = []
    for row in (row for row in rows if row.control.config.label_fraction == 1):
        x, y = row.found["test_sse"], row.found["argmax_accuracy"]
        colour = ACCENT if row.found["owned_digits"].least == DIGITS else WARM
        across, up = ([[each.middle - each.least], [each.most - each.middle]] for each in (x, y))
        axes.errorbar([x.middle], [y.middle], up, across, fmt="o", color=colour, capsize=3, linewidth=1)
        points.append((x.middle, y.middle, row.control.name, INK))
    axes.set_xlabel("test SSE (squared pixel errors per image)", color=INK)
    axes.set_ylim(0, 105)
    axes.margins(x=0.12)
    kinds = {"each digit owns its dimension": ACCENT, "not each does, on some seed": WARM}
    marks = [Line2D([], [], marker="o", linestyle="", color=colour, label=kind) for kind, colour in kinds.items()]
    marks.append(Line2D([], [], color=MUTED, linewidth=1, label="from the least to the most of the seeds"))
    _legend(figure, axes, marks)
    named(axes, points)
    return figure


def lines(rows: Sequence[Measured], title: str) -> Figure:
    """Accuracy against reconstruction error; rows that differ in one thing are joined in their order."""
    figure, axes = _figure("What units buy: accuracy against reconstruction", title)
    points = []
    for kind, (setting, text, colour) in KINDS.items():
        # The recipe itself is on each line but that of the other kind of model.
        shown = [row for row in rows if row.control.name.startswith(f"{kind}-")]
        shown += [row for row in rows if row.control.name == "wide" and kind != "slices"]
        values = {row.control.name: getattr(row.control.config.settings(), setting) for row in shown}
        shown.sort(key=lambda row, values=values: values[row.control.name])  # type: ignore[misc]
        x, y = ([row.found[key].middle for row in shown] for key in ("test_sse", "argmax_accuracy"))
        axes.plot(x, y, color=colour, marker="o", markersize=5, linewidth=1.2, label=text)
        points += [
            (a, b, f"{values[row.control.name]:g}", colour)
            for row, a, b in zip(shown, x, y, strict=True)
            if row.control.name != "wide"
        ]
    for row in rows:
        if row.control.name == "wide":
            here = row.found["test_sse"].middle, row.found["argmax_accuracy"].middle
            axes.plot(*here, color=INK, marker="o", linestyle="", label=f"the recipe: {row.control.what}")
            points.insert(0, (*here, "wide", INK))
        if row.control.name == "twin":
            axes.axvline(row.found["test_sse"].middle, color=MUTED, linewidth=1, label=f"{row.control.what} (its SSE)")
    axes.set_xlabel("test SSE (squared pixel errors per image)", color=INK)
    axes.margins(0.1)
    _legend(figure, axes)
    named(axes, points)
    return figure


def _rule(row: Measured) -> str:
    """What becomes of images without a label."""
    config = row.control.config
    return "left out" if config.labeled_epochs == config.epochs else config.unlabeled


def _figure(heading: str, title: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(WIDTH, 4.6), layout="constrained")
    figure.suptitle(f"{heading}\n{title}", fontsize=9.5, color=INK)
    axes = figure.subplots()
    axes.set_ylabel("argmax accuracy, %", color=INK)
    plain(axes, grid="both")
    return figure, axes


def _legend(figure: Figure, axes: Axes, handles: Sequence[Line2D] | None = None) -> None:
    """Below the picture, where it covers nothing."""
    shown, _ = axes.get_legend_handles_labels()
    figure.legend(
        handles=shown if handles is None else handles,
        loc="outside lower left",
        frameon=False,
        fontsize=SMALL,
        labelcolor=INK,
    )
