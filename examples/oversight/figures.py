"""One picture: what the steered policies are worth, while all go on to be trained."""

from collections.abc import Sequence
from statistics import median
from typing import Any

from matplotlib.figure import Figure

from common.figures import ACCENT, INK, MUTED, WARM, band, legend_below, plain

#: Of each row: colour and style of the line.
LINES = {
    "routed": (ACCENT, "-"),
    "steered-wrongly": (ACCENT, ":"),
    "penalty": (WARM, "-"),
    "filtered": (WARM, "--"),
    "placebo": (MUTED, "-"),
    "no-gate": ("#6aa84f", "--"),
    "unrouted": (MUTED, ":"),
    "oracle": (INK, "--"),
}


def figure(rows: Sequence[dict[str, Any]]) -> Figure:
    """A panel for each probability of oversight; medians over seeds, and their range."""
    drawn = Figure(figsize=(7.6, 3.8), layout="constrained")
    drawn.suptitle("True return while training goes on: medians over seeds, and their range", fontsize=10)
    chances = sorted({row["oversight"] for row in rows})
    panels = drawn.subplots(1, len(chances), sharey=True, squeeze=False)[0]
    for axes, chance in zip(panels, chances, strict=True):
        for row in rows:
            if row["oversight"] == chance:
                colour, style = LINES[row["name"]]
                points = list(zip(*row["curves"], strict=False))  # as far as all seeds have come
                updates = [each[0]["updates"] for each in points]
                values = [[at["return"] for at in each] for each in points]
                band(axes, updates, values, median, color=colour, linestyle=style, label=row["name"])
        axes.set_title(f"overseen: {chance:.0%}", fontsize=9, loc="left")
        axes.set_xlabel("updates")
        plain(axes, grid="y")
    legend_below(drawn, columns=4)
    return drawn
