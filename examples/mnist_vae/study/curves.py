"""The pictures of a comparison. Each function returns a figure."""

from collections.abc import Sequence
from statistics import mean
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from common.figures import ACCENT, INK, MUTED, WARM, plain

#: Of each kind of row in `mnist_vae.study.tradeoff`: what changes along it, and its name in the picture.
SETTING = {"units": "units", "kl": "kl_weight", "shared": "shared", "slices": "units"}
LEGEND = {
    "units": "units per digit",
    "kl": "KL weight of style units",
    "shared": "shared style units",
    "slices": "units per digit, without a presence unit",
}

Summary = Sequence[dict[str, Any]]


def label_fractions(summary: Summary, title: str) -> Figure:
    """Accuracy against the part of the images that has a label, a line for each rule for the others."""
    figure, axes = _figure("Accuracy by the part of the training images whose label routes", title)
    for rule, text, colour in (
        ("left out", "the others are left out", MUTED),
        ("loudest", "after one labeled epoch, the others teach the unit that speaks loudest", ACCENT),
        ("all", "the others teach all units", WARM),
    ):
        few = [row for row in summary if row["unlabeled"] == rule and row["label_fraction"] < 1]
        rows = sorted(
            [*few, *(row for row in summary if row["name"] == "routed")], key=lambda row: row["label_fraction"]
        )
        parts = [row["label_fraction"] for row in rows]
        axes.plot(parts, [mean(row["argmax_accuracy"]) for row in rows], color=colour, marker="o", label=text)
        _whiskers(axes, parts, [row["argmax_accuracy"] for row in rows], colour)
    axes.set_xscale("log")
    axes.set_xlabel("labeled part of the training set", color=INK)
    axes.set_ylim(0, 1)
    axes.legend(frameon=False, fontsize=8, labelcolor=INK)
    return figure


def scatter(summary: Summary, title: str) -> Figure:
    """Accuracy against reconstruction error, a named point for each row that has all labels."""
    figure, axes = _figure("What routing does, and what it costs", title)
    for row in (row for row in summary if row["label_fraction"] == 1):
        x, y = mean(row["test_sse"]), mean(row["argmax_accuracy"])
        axes.plot([x], [y], marker="o", color=ACCENT if mean(row["owned_digits"]) == 10 else WARM)
        axes.annotate(row["name"], (x, y), xytext=(5, 4), textcoords="offset points", fontsize=8, color=INK)
    axes.set_xlabel("test SSE (sum of squared pixel errors per image)", color=INK)
    axes.margins(0.1)
    return figure


def lines(summary: Summary, title: str) -> Figure:
    """Accuracy against reconstruction error; rows that differ in one thing are joined in their order."""
    figure, axes = _figure("What units buy: accuracy against reconstruction", title)
    for kind, colour in (("units", ACCENT), ("kl", "#5c8a4d"), ("shared", "#8a6bb0"), ("slices", WARM)):
        rows = [row for row in summary if row["name"].startswith(f"{kind}-") or row["name"] == "wide"]
        if kind == "slices":
            rows = [row for row in rows if row["name"] != "wide"]
        rows.sort(key=lambda row: row[SETTING[kind]])
        points = [(mean(row["test_sse"]), mean(row["argmax_accuracy"])) for row in rows]
        axes.plot([x for x, _ in points], [y for _, y in points], color=colour, marker="o", label=LEGEND[kind])
        for row, point in zip(rows, points, strict=True):
            text = f"{row[SETTING[kind]]:g}"
            axes.annotate(text, point, xytext=(4, 5), textcoords="offset points", fontsize=8, color=colour)
    for row in summary:
        if row["name"] == "twin":
            axes.axvline(mean(row["test_sse"]), color=MUTED, linewidth=1, label=row["what"])
    axes.set_xlabel("test SSE (sum of squared pixel errors per image)", color=INK)
    axes.legend(frameon=False, fontsize=8, labelcolor=INK)
    return figure


def _figure(heading: str, title: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(7.2, 4.4), layout="constrained")
    figure.suptitle(f"{heading}\n{title}", fontsize=10, color=INK)
    axes = figure.subplots()
    axes.set_ylabel("argmax accuracy", color=INK)
    plain(axes, grid="both")
    return figure, axes


def _whiskers(axes: Axes, x: Sequence[float], values: Sequence[Sequence[float]], colour: str) -> None:
    """From the smallest to the largest of the seeds."""
    axes.vlines(x, [min(each) for each in values], [max(each) for each in values], color=colour, linewidth=1)
