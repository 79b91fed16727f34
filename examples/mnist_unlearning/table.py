"""The results as one table: means over seeds, and the range where there is one."""

from collections.abc import Iterable, Sequence
from typing import Any

from common import tables
from mnist_unlearning.conditions import TWIN
from mnist_unlearning.config import Condition
from mnist_unlearning.relearn import steps_to

#: Of each value: its heading, by what it is multiplied, and how it is printed.
COLUMNS = {
    "forgotten": ("forgotten, %", 100, "{:.1f}"),
    "kept": ("kept, %", 100, "{:.1f}"),
    "cost": ("cost, points", 100, "{:.1f}"),
    "separation": ("separation, %", 100, "{:.1f}"),
    "probe": ("probe, %", 100, "{:.1f}"),
    "steps_to_half": ("steps to relearn", 1, "{:.0f}"),
    "whole_forgotten": ("digit before, %", 100, "{:.1f}"),
    "whole_kept": ("kept before, %", 100, "{:.1f}"),
}
RELEARNED = 0.5


def summarise(rows: Sequence[Condition], seeds: Sequence[int], results: Iterable[dict[str, Any]]) -> list[Any]:
    """A row for each condition, with a list of values of each column: one per seed, in the seeds' order.

    Args:
        rows: Conditions; the unrouted twin among them, which quality is compared with.
        seeds: Of each.
        results: Of the runs.
    """
    by_job = {(found["condition"]["name"], found["seed"]): found for found in results}
    twins = [by_job[TWIN, seed]["whole"]["kept_of_nine"] for seed in seeds]
    return [_row(row, seeds, [by_job[row.name, seed] for seed in seeds], twins) for row in rows]


#: What stands in the first of the two tables of the documentation; the rest is in the second.
FIRST = ("forgotten", "kept", "cost", "separation", "steps_to_half")
SECOND = tuple(key for key in COLUMNS if key not in FIRST)


def markdown(summary: Sequence[dict[str, Any]], keys: Sequence[str] = tuple(COLUMNS)) -> str:
    """The table of results, of all columns or of these."""
    columns = {key: COLUMNS[key] for key in keys}
    lines = [
        [
            f"`{row['name']}`",
            *(
                tables.mean_and_range([factor * x for x in row[key]], form)
                for key, (_, factor, form) in columns.items()
            ),
        ]
        for row in summary
    ]
    return tables.markdown(["run", *(heading for heading, _, _ in columns.values())], lines)


def legend(summary: Sequence[dict[str, Any]]) -> str:
    """What each row is, once for all fractions."""
    texts = {row["name"].removesuffix(f"-{row['fraction']:g}"): row["what"] for row in summary}
    return tables.markdown(["run", "what"], [[f"`{name}`", text] for name, text in texts.items()])


def uses_labels(row: dict[str, Any]) -> bool:
    return bool(row["filtered"] != "no" or row["level"] != "none")


def _row(row: Condition, seeds: Sequence[int], found: list[dict[str, Any]], twins: list[float]) -> dict[str, Any]:
    return {
        "name": row.name,
        "what": row.what,
        "fraction": row.fraction,
        "level": row.level,
        "filtered": row.filtered,
        "seeds": list(seeds),
        **{key: [run["after"][key] for run in found] for key in found[0]["after"]},
        "cost": [twin - run["after"]["kept_of_nine"] for twin, run in zip(twins, found, strict=True)],
        **{f"whole_{key}": [run["whole"][key] for run in found] for key in found[0]["whole"]},
        "steps_to_half": [steps_to(run["relearning"], RELEARNED) for run in found],
        "relearning_steps": found[0]["relearning"]["steps"],
        "relearning": [run["relearning"]["forgotten"] for run in found],
        **{key: [run[key] for run in found] for key in ("seconds", "cpu_seconds", "load_average")},
    }
