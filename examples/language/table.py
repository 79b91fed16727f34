"""The results as one table and one figure."""

from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure

from common import tables
from common.figures import ACCENT, MUTED, WARM, WIDTH, legend_below, plain
from language.config import TWIN
from language.runs import Job

PERFECT = "perfect-filter"
#: Of each value: its heading, by what it is multiplied, and how it is printed.
COLUMNS = {
    "es_loss_before": ("ES before", 1, "{:.3f}"),
    "es_loss_after": ("ES after", 1, "{:.3f}"),
    "gap": ("ES gap, %", 100, "{:+.1f}"),
    "en_loss_before": ("EN before", 1, "{:.3f}"),
    "en_loss_after": ("EN after", 1, "{:.3f}"),
    "cost": ("EN cost, %", 100, "{:+.1f}"),
    "relearned": ("ES relearned", 1, "{:.3f}"),
    "cpu_seconds": ("CPU, s", 1, "{:.0f}"),
}


def summarise(jobs: Sequence[Job], found: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row for each condition and labeled share; of each column a list of values, one for each seed.

    Gap and cost are relative differences, to the loss of the model that never saw Spanish and to the twin's; None where
    that was not run.
    """
    by_seed = {(job.condition.name, job.seed): each for job, each in zip(jobs, found, strict=True)}
    runs = []
    for job, each in zip(jobs, found, strict=True):
        labeled = job.settings.labeled if job.condition.uses_labels else None
        perfect, twin = (by_seed.get((other, job.seed)) for other in (PERFECT, TWIN.name))
        values = {
            **each,
            "seeds": job.seed,
            "gap": perfect and each["es_loss_after"] / perfect["es_loss_after"] - 1,
            "cost": twin and each["en_loss_after"] / twin["en_loss_after"] - 1,
            "relearned": each["relearning"][-1],
        }
        runs.append(({"name": job.condition.name, "what": job.condition.what, "labeled": labeled}, values))
    return tables.gather(runs)


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """The table of results."""

    def cell(values: Sequence[float | None], factor: float, form: str) -> str:
        known = [factor * value for value in values if value is not None]
        return tables.mean_and_range(known, form) if known else ""

    lines = [
        [
            "" if row["labeled"] is None else f"{row['labeled']:.0%}",
            f"`{row['name']}`",
            str(len(row["seeds"])),
            *(cell(row[key], factor, form) for key, (_, factor, form) in COLUMNS.items()),
        ]
        for row in rows
    ]
    return tables.markdown(["labeled", "run", "seeds", *(heading for heading, _, _ in COLUMNS.values())], lines)


def sections(results: dict[str, Any]) -> dict[str, str]:
    """Parts of the README that are made from ``results.json``, by their names."""
    return {"rows": tables.legend(results["rows"]), "table": markdown(results["rows"]), "made": made(results)}


def made(results: dict[str, Any]) -> str:
    """How the table was made, and how long that took."""
    seconds = [value for row in results["rows"] for value in row["cpu_seconds"]]
    settings, machine = results["settings"], results["machine"]
    return (
        f"{len(seconds)} runs of {settings['steps']} steps of {settings['batch_size']} times {settings['context']} "
        f"tokens, seed{'s' if len(results['seeds']) > 1 else ''} {', '.join(map(str, results['seeds']))}: "
        f"{sum(seconds) / 60:.0f} minutes of CPU time for training, on {machine['cores']} shared "
        f"cores, with torch {machine['torch']}. {settings['english_labeled']:.0%} of the English is labeled."
    )


def relearning(rows: Sequence[dict[str, Any]], steps: Sequence[int]) -> Figure:
    """How fast each model of the table learns Spanish again, in the first seed and the first labeled share."""
    figure = Figure(figsize=(WIDTH, 4.2), layout="constrained")
    axes = figure.subplots()
    plain(axes, "both")
    first = next((row["labeled"] for row in rows if row["labeled"] is not None), None)
    shown = [row for row in rows if row["labeled"] in (None, first)]
    for number, row in enumerate(shown):
        color = {TWIN.name: MUTED, PERFECT: ACCENT}.get(row["name"], WARM)
        style = ["-", "--", ":", "-."][number % 4]
        axes.plot(steps, row["relearning"][0], style, color=color, marker="o", markersize=3, label=row["name"])
    axes.set_xlabel("steps on Spanish")
    axes.set_ylabel("loss on Spanish, nats per byte")
    legend_below(figure, columns=3)
    return figure
