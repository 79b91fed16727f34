"""The results as one table: medians over seeds, and the range where there is one."""

from collections.abc import Sequence
from statistics import median
from typing import Any

from common import tables
from oversight import tampering
from oversight.runs import Job

#: The routed run with its gate set to the ghost expert, which needs no run of its own.
WRONG = ("steered-wrongly", "`routed`, with its gate set to the ghost expert")
#: Of each value: its heading, and how it is printed.
COLUMNS = {
    "return": ("true return", "{:.2f}"),
    "equal": ("after as many episodes", "{:.2f}"),
    "training": ("of the policy in training", "{:.2f}"),
    "diamond": ("ends at the diamond", "{:.0%}"),
    "ghost": ("at the ghost", "{:.0%}"),
    "episodes": ("episodes", "{:.0f}"),
}


def summarise(jobs: Sequence[Job], curves: Sequence[Sequence[dict[str, Any]]], updates: int) -> list[dict[str, Any]]:
    """A row for each probability of oversight and condition; of each column a list of values, one for each seed.

    They are those after so many updates; the curves are as long as each run.
    """
    rows: dict[tuple[float, str], dict[str, Any]] = {}
    for job, curve in zip(jobs, curves, strict=True):
        last = next(at for at in curve if at["updates"] == updates)
        chance, shown = job.settings.oversight, [(job.condition.name, job.condition.what, "steered")]
        for name, what, policy in shown + [(*WRONG, "ghost")] * (job.condition.name == "routed"):
            row = rows.setdefault((chance, name), {"name": name, "what": what, "oversight": chance})
            values = {
                "seeds": job.seed,
                "cpu_seconds": curve[-1]["cpu_seconds"],
                "episodes": last["episodes"],
                "training": last["training"]["return"],
                **last[policy],
                "curves": [{"updates": at["updates"], "episodes": at["episodes"], **at[policy]} for at in curve],
            }
            for key, value in values.items():
                row.setdefault(key, []).append(value)
    for row in rows.values():
        beside = [each for each in rows.values() if each["oversight"] == row["oversight"]]
        least = min(count for each in beside for count in each["episodes"])
        points = [[at for at in curve if at["episodes"] <= least] or curve[:1] for curve in row["curves"]]
        row["equal"], row["updates"] = [each[-1]["return"] for each in points], updates
    return sorted(rows.values(), key=lambda row: float(row["oversight"]))  # stable


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """The table of results."""
    lines = [
        [
            f"{row['oversight']:.0%}",
            f"`{row['name']}`",
            str(len(row["seeds"])),
            *(tables.median_and_range(row[key], form) for key, (_, form) in COLUMNS.items()),
        ]
        for row in rows
    ]
    return tables.markdown(["overseen", "run", "seeds", *(heading for heading, _ in COLUMNS.values())], lines)


def later(rows: Sequence[dict[str, Any]]) -> str:
    """True returns on the way, as medians over the seeds that have come so far."""
    last = max(at["updates"] for row in rows for curve in row["curves"] for at in curve)
    shown = [updates for updates in (100, 200, 300, 500, 700, 1000, 1500, 2000, 3000, 5000, 10000) if updates <= last]
    lines = []
    for row in rows:
        at = [
            [at["return"] for curve in row["curves"] for at in curve if at["updates"] == updates] for updates in shown
        ]
        cells = [f"{median(values):.2f}" if values else "" for values in at]
        lines.append([f"{row['oversight']:.0%}", f"`{row['name']}`", *cells])
    return tables.markdown(["overseen", "run", *map(str, shown)], lines)


def legend(rows: Sequence[dict[str, Any]]) -> str:
    """What each row is, once for all probabilities."""
    texts = {row["name"]: row["what"] for row in rows}
    return tables.markdown(["run", "what"], [[f"`{name}`", text] for name, text in texts.items()])


def sections(results: dict[str, Any]) -> dict[str, str]:
    """Parts of the README that are made from ``results.json``, by their names."""
    return {
        "rows": legend(results["rows"]),
        "table": markdown(results["rows"]),
        "later": later(results["rows"]),
        "tampering": tampering.markdown(results["tampering"]),
        "made": made(results),
    }


def made(results: dict[str, Any]) -> str:
    """How the table was made, and how long that took."""
    seconds = [value for row in results["rows"] if row["name"] != WRONG[0] for value in row["cpu_seconds"]]
    machine = results["machine"]
    return (
        f"The table is of {results['rows'][0]['updates']} updates. {len(seconds)} runs, each on one thread: "
        f"{sum(seconds) / 60:.0f} minutes of CPU time, besides judging. The machine has {machine['cores']} cores and "
        f"torch {machine['torch']}."
    )
