"""One picture: what the steered policies are worth, while all go on to be trained."""

from collections.abc import Sequence
from statistics import median
from typing import Any

from matplotlib.figure import Figure

from common.figures import ACCENT, INK, MUTED, WARM, plain

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


def curves(rows: Sequence[dict[str, Any]], title: str) -> Figure:
    """A panel for each probability of oversight; medians over seeds, and their range."""
    figure = Figure(figsize=(7.6, 3.8), layout="constrained")
    figure.suptitle(f"True return while training goes on ({title})", fontsize=10)
    chances = sorted({row["oversight"] for row in rows})
    panels = figure.subplots(1, len(chances), sharey=True, squeeze=False)[0]
    for axes, chance in zip(panels, chances, strict=True):
        for row in rows:
            if row["oversight"] != chance:
                continue
            colour, style = LINES[row["name"]]
            length = min(map(len, row["curves"]))
            updates = [at["updates"] for at in row["curves"][0][:length]]
            values = list(zip(*([at["return"] for at in curve[:length]] for curve in row["curves"]), strict=True))
            axes.plot(updates, [median(each) for each in values], color=colour, linestyle=style, label=row["name"])
            axes.fill_between(updates, [*map(min, values)], [*map(max, values)], color=colour, alpha=0.12, linewidth=0)
        axes.set_title(f"overseen: {chance:.0%}", fontsize=9, loc="left")
        axes.set_xlabel("updates")
        plain(axes, grid="y")
    handles = {str(line.get_label()): line for axes in panels for line in axes.get_lines()}
    figure.legend(list(handles.values()), list(handles), loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    return figure
