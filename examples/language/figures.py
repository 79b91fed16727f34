"""The results as pictures: medians over seeds, and their range."""

from collections.abc import Sequence
from statistics import median
from typing import Any

from matplotlib.figure import Figure

from common.figures import ACCENT, INK, MUTED, SMALL, WARM, WIDTH, band, legend_below, plain
from language.config import BY_LABELS, DETECTOR, PERFECT, ROUTED, TWIN

#: Of each row that is drawn: colour and style of its line.
LINES = {
    TWIN.name: (MUTED, ":"),
    PERFECT.name: (INK, ":"),
    BY_LABELS.name: (WARM, "--"),
    DETECTOR.name: (INK, "-"),
    ROUTED.name: (ACCENT, "-"),
}

Row = dict[str, Any]


def relearning(rows: Sequence[Row], steps: Sequence[int], share: float) -> Figure:
    """How fast models learn Spanish again, of rows with this labeled share."""
    figure = Figure(figsize=(WIDTH, 4.2), layout="constrained")
    axes = figure.subplots()
    for row in rows:
        if row["name"] in LINES and row["labeled"] in (None, share):
            color, style = LINES[row["name"]]
            values = list(zip(*row["relearning"], strict=True))
            band(axes, steps, values, median, color=color, linestyle=style, label=row["name"])
    axes.set_xlabel(f"steps on Spanish, of which {share:.0%} was labeled", fontsize=SMALL)
    axes.set_ylabel("loss on Spanish, nats per byte", fontsize=SMALL)
    plain(axes, "both")
    legend_below(figure, columns=2)
    return figure


def shares(rows: Sequence[Row]) -> Figure:
    """What is lost of Spanish and of English, by how much of the Spanish is labeled."""
    figure = Figure(figsize=(WIDTH, 5.4), layout="constrained")
    known = sorted({row["labeled"] for row in rows if row["name"] == ROUTED.name})
    panels = {"es_loss_after": "Spanish, the higher the better", "en_loss_after": "English, the lower the better"}
    for axes, (key, title) in zip(figure.subplots(2, 1, sharex=True), panels.items(), strict=True):
        for name, (color, style) in LINES.items():
            of_row = {row["labeled"]: row[key] for row in rows if row["name"] == name}
            # What uses no labels is the same at each share.
            points = [(share, values) for share in known if (values := of_row.get(share, of_row.get(None)))]
            if points:
                places, values = zip(*points, strict=True)
                band(axes, places, values, median, color=color, linestyle=style, label=name, marker=".")
        axes.set_title(title, fontsize=SMALL, loc="left")
        plain(axes, "both")
    axes.set_xlabel("part of the Spanish that is labeled; losses in nats per byte", fontsize=SMALL)
    legend_below(figure, columns=2)
    return figure
