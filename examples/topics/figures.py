"""The results as a picture: which topic is lost when which module is taken out."""

from collections.abc import Sequence
from math import isnan, nan
from statistics import median
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from common.figures import INK, SMALL, WIDTH
from common.tables import unsigned_zero
from topics.config import ROUTED, SUBSETS, TOPICS, TWIN
from topics.measure import key
from topics.table import by_seed

WORST = 60.0  #: Percent: from here on a cell has the full colour.


def matrices(models: Sequence[dict[str, Any]]) -> Figure:
    """For the routed model and for filtered ones: rows of what is taken out, columns of topics."""
    panels = {ROUTED.name: "routed: one training", "perfect-filter": f"perfect filters: {len(SUBSETS)} trainings"}
    names = {key(subset): subset[0] if len(subset) == 1 else "all" for subset in SUBSETS}
    figure = Figure(figsize=(WIDTH, 5.6), layout="constrained")
    for axes, (row, title) in zip(figure.subplots(2, 1, sharex=True), panels.items(), strict=True):
        outs = {"": "nothing", **names} if row == ROUTED.name else names
        rises = np.array([[_rise(models, row, out, topic) for topic in TOPICS] for out in outs])
        axes.imshow(rises, cmap="Oranges", vmin=0, vmax=WORST, aspect="auto")
        for (y, x), value in np.ndenumerate(rises):
            color = "white" if value > 0.7 * WORST else INK
            text = "" if isnan(value) else unsigned_zero(f"{value:+.0f}")
            axes.text(x, y, text, ha="center", va="center", fontsize=SMALL, color=color)
        axes.set_yticks(range(len(outs)), list(outs.values()), fontsize=SMALL)
        axes.set_ylabel("taken out", fontsize=SMALL)
        axes.set_title(title, fontsize=SMALL, loc="left")
        axes.spines[:].set_visible(False)
        axes.tick_params(length=0, colors=INK)
    axes.set_xticks(range(len(TOPICS)), TOPICS, fontsize=SMALL)
    axes.set_xlabel(f"loss on a topic, % over that of the {TWIN.name}", fontsize=SMALL)
    return figure


def _rise(models: Sequence[dict[str, Any]], row: str, out: str, topic: str) -> float:
    """Percent over the twin's loss, the median over seeds; NaN where no such model was trained."""
    twins = {seed: found[TWIN.name][""] for seed, found in by_seed(models).items() if TWIN.name in found}
    found = {seed: each[row][out] for seed, each in by_seed(models).items() if out in each.get(row, {})}
    rises = [100 * (found[seed][topic] / twins[seed][topic] - 1) for seed in found.keys() & twins.keys()]
    return median(rises) if rises else nan
