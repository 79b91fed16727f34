"""The results as one table: means over seeds, and the range where there is one."""

from collections.abc import Iterable, Sequence
from statistics import mean
from typing import Any

from mnist_unlearning.config import Condition
from mnist_unlearning.relearn import steps_to

#: Of each value: its heading, and how it is printed.
COLUMNS = {
    "forgotten": ("forgotten digit", "{:.1%}"),
    "kept": ("kept digits", "{:.1%}"),
    "whole_forgotten": ("digit, before", "{:.1%}"),
    "whole_kept": ("kept, before", "{:.1%}"),
    "steps_to_half": ("steps to relearn", "{:.0f}"),
}
RELEARNED = 0.5


def summarise(rows: Sequence[Condition], seeds: Sequence[int], results: Iterable[dict[str, Any]]) -> list[Any]:
    """A row for each condition, with a list of values of each column: one per seed, in the seeds' order."""
    by_job = {(found["condition"]["name"], found["seed"]): found for found in results}
    return [_row(row, seeds, [by_job[row.name, seed] for seed in seeds]) for row in rows]


def markdown(summary: Sequence[dict[str, Any]]) -> str:
    headings = ["labels", "run", "what", *(heading for heading, _ in COLUMNS.values())]
    lines = [
        [_labels(row), row["name"], row["what"], *(cell(row[key], form) for key, (_, form) in COLUMNS.items())]
        for row in summary
    ]
    widths = [max(len(cells[i]) for cells in [headings, *lines]) for i in range(len(headings))]
    table = [headings, ["-" * width for width in widths], *lines]
    padded = [[text.ljust(width) for text, width in zip(cells, widths, strict=True)] for cells in table]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in padded)


def cell(values: Sequence[float], form: str) -> str:
    """The mean and the range; of values that were never reached, only the least is known."""
    if any(value == float("inf") for value in values):
        reached = [value for value in values if value != float("inf")]
        return f"from {form.format(min(reached))} to never" if reached else "never"
    texts = {form.format(value) for value in values}
    if len(texts) == 1:
        return texts.pop()
    return f"{form.format(mean(values))} ({form.format(min(values))} to {form.format(max(values))})"


def _row(row: Condition, seeds: Sequence[int], found: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "name": row.name,
        "what": row.what,
        "fraction": row.fraction,
        "forgets_by": row.forgets_by,
        "level": row.level,
        "filtered": row.filtered,
        "seeds": list(seeds),
        **{key: [run["after"][key] for run in found] for key in ("forgotten", "kept")},
        **{f"whole_{key}": [run["whole"][key] for run in found] for key in ("forgotten", "kept")},
        "steps_to_half": [steps_to(run["relearning"], RELEARNED) for run in found],
        "relearning_steps": found[0]["relearning"]["steps"],
        "relearning": [run["relearning"]["forgotten"] for run in found],
        "seconds": [run["seconds"] for run in found],
    }


def uses_labels(row: dict[str, Any]) -> bool:
    return bool(row["filtered"] != "no" or row["level"] != "none")


def _labels(row: dict[str, Any]) -> str:
    return f"{row['fraction']:.0%}" if uses_labels(row) else "none"
