"""The results as tables: medians over seeds, and the range where there is one."""

from collections.abc import Mapping, Sequence
from typing import Any

from common import tables
from common.curves import reached
from language.config import BY_LABELS, LITTLE, PERFECT, TWIN
from language.measure import RELEARNING
from language.runs import Job

#: Of each value: its heading, by what it is multiplied, and how it is printed.
COLUMNS = {
    "es_loss_after": ("ES after", 1, "{:.3f}"),
    "gap": ("ES gap, %", 100, "{:+.1f}"),
    "leakage": ("leakage, %", 100, "{:.1f}"),
    "en_loss_after": ("EN after", 1, "{:.3f}"),
    "cost": ("EN cost, %", 100, "{:+.1f}"),
    "over_filter": ("over the filter, %", 100, "{:+.1f}"),
    "compute": ("compute, %", 100, "{:.0f}"),
}
FURTHER = {
    "es_loss_before": ("ES before", 1, "{:.3f}"),
    "en_loss_before": ("EN before", 1, "{:.3f}"),
    "soon": (f"ES after {RELEARNING[2]} steps", 1, "{:.3f}"),
    "relearned": (f"after {RELEARNING[-1]}", 1, "{:.3f}"),
    "probe": ("probe, %", 100, "{:.1f}"),
    "cpu_seconds": ("CPU, s", 1, "{:.0f}"),
}

Row = dict[str, Any]


def summarise(jobs: Sequence[Job], found: Sequence[Row]) -> list[Row]:
    """A row for each condition and labeled share; of each column a list of values, one for each seed.

    None is in place of a value that is relative to a run which is not there.
    """
    by_seed: dict[int, dict[tuple[str, float | None], Row]] = {}
    for job, each in zip(jobs, found, strict=True):
        by_seed.setdefault(job.seed, {})[job.condition.name, _share(job)] = each
    runs = []
    for job, each in zip(jobs, found, strict=True):
        beside = by_seed[job.seed]
        twin, perfect = (beside.get((other.name, None)) for other in (TWIN, PERFECT))
        english, spanish = each["en_loss_after"], each["es_loss_after"]
        values = {
            **each,
            "seeds": job.seed,
            "gap": perfect and spanish / perfect["es_loss_after"] - 1,
            "leakage": _leakage(job, spanish, beside),
            "cost": twin and english / twin["en_loss_after"] - 1,
            "over_filter": perfect and english / perfect["en_loss_after"] - 1,
            "compute": twin and reached(twin["curve"], english) / job.settings.steps,
            "soon": each["relearning"][2],
            "relearned": each["relearning"][-1],
        }
        runs.append(({"name": job.condition.name, "what": job.condition.what, "labeled": _share(job)}, values))
    return tables.gather(runs)


def _share(job: Job) -> float | None:
    return job.settings.labeled if job.condition.uses_labels else None


def _leakage(job: Job, spanish: float, beside: Mapping[tuple[str, float | None], Row]) -> float | None:
    """How much of the Spanish teaches a plain model as much, in parts of the Spanish that is not labeled.

    None where all of it is labeled, where labels are drawn by lot, and where no model was trained on a little Spanish.
    """
    share = _share(job)
    if share is None or share == 1 or job.condition.labels == "random" or (BY_LABELS.name, LITTLE[0]) not in beside:
        return None
    seen: dict[tuple[str, float | None], float] = {
        (TWIN.name, None): 1.0,
        (PERFECT.name, None): 0.0,
        **{(name, part): 1 - part for name, part in beside if name == BY_LABELS.name and part is not None},
    }
    points = [(part, beside[key]["es_loss_after"]) for key, part in seen.items() if key in beside]
    return reached(sorted(points), spanish) / (1 - share)


def markdown(rows: Sequence[Row], columns: Mapping[str, tuple[str, float, str]]) -> str:
    """A table of results."""

    def cell(values: Sequence[float | None], factor: float, form: str) -> str:
        known = [factor * value for value in values if value is not None]
        return tables.median_and_range(known, form) if known else ""

    lines = [
        [
            "" if row["labeled"] is None else f"{row['labeled']:.0%}",
            f"`{row['name']}`",
            str(len(row["seeds"])),
            *(cell(row[key], factor, form) for key, (_, factor, form) in columns.items()),
        ]
        for row in rows
    ]
    return tables.markdown(["labeled", "run", "seeds", *(heading for heading, _, _ in columns.values())], lines)


def sections(results: dict[str, Any]) -> dict[str, str]:
    """Parts of the README that are made from ``results.json``, by their names."""
    rows = [row for row in results["rows"] if row["labeled"] not in LITTLE]
    # What all are compared with first, then from many labels to few.
    rows.sort(key=lambda row: -(row["labeled"] or 2.0))
    return {
        "rows": tables.legend(rows),
        "table": markdown(rows, COLUMNS),
        "further": markdown(rows, FURTHER),
        "made": made(results),
    }


def made(results: dict[str, Any]) -> str:
    """How the table was made, and how long that took."""
    # A detector that did not err was no run of its own.
    seconds = {value for row in results["rows"] for value in row["cpu_seconds"]}
    settings, machine = results["settings"], results["machine"]
    return (
        f"{len(seconds)} runs of {settings['steps']} steps of {settings['batch_size']} times {settings['context']} "
        f"tokens, seed{'s' if len(results['seeds']) > 1 else ''} {', '.join(map(str, results['seeds']))}: "
        f"{sum(seconds) / 60:.0f} minutes of CPU time for training, on {machine['cores']} shared "
        f"cores, with torch {machine['torch']}. {settings['english_labeled']:.0%} of the English is labeled."
    )
