"""Tables in Markdown, and the text of a cell."""

import re
from collections.abc import Iterable, Sequence
from statistics import mean, median
from typing import Any, NamedTuple

from common.errors import ExampleError


def markdown(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table whose columns are aligned in the text, too."""
    widths = [max(len(cells[column]) for cells in [headings, *rows]) for column in range(len(headings))]
    table = [headings, ["-" * width for width in widths], *rows]
    return "\n".join(
        f"| {' | '.join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True))} |" for cells in table
    )


def gather(runs: Iterable[tuple[dict[str, Any], dict[str, Any]]]) -> list[dict[str, Any]]:
    """A row for all runs that are alike but for their seed.

    Args:
        runs: Of each, what it shares with its row, and its own values.

    Returns:
        What they share, and of each value a list, in the runs' order.
    """
    rows: dict[tuple[Any, ...], dict[str, Any]] = {}
    for shared, values in runs:
        row = rows.setdefault(tuple(shared.values()), dict(shared))
        for key, value in values.items():
            row.setdefault(key, []).append(value)
    return list(rows.values())


def legend(rows: Iterable[dict[str, Any]]) -> str:
    """What each row is, once for all rows of its name."""
    whats = {row["name"]: row["what"] for row in rows}
    return markdown(["run", "what"], [[f"`{name}`", what] for name, what in whats.items()])


def check_rows(names: Iterable[str], rows: Sequence[str], also: Iterable[str] = ()) -> None:
    """Raise an ExampleError that lists the rows where one of the names is none of them.

    Args:
        names: What somebody asked for.
        rows: The names of all rows.
        also: Other names that are allowed.
    """
    known = {*rows, *also}
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ExampleError(f"there is no row {', '.join(unknown)}; choose from {', '.join(rows)}.")


def mean_and_range(values: Sequence[float], form: str) -> str:
    """The mean and, where the values do not all print alike, their range.

    Args:
        values: One or more; infinity stands for a value that was never reached, of which only the least is known.
        form: How a value is printed, such as ``{:.1f}``.
    """
    if any(value == float("inf") for value in values):
        reached = [value for value in values if value != float("inf")]
        return f"from {form.format(min(reached))} to never" if reached else "never"
    return _and_range(mean(values), values, form)


def median_and_range(values: Sequence[float], form: str) -> str:
    """The median and, where the values do not all print alike, their range; see `mean_and_range`."""
    return _and_range(median(values), values, form)


class Spread(NamedTuple):
    """What a cell of a table says: a middle, and from where to where the values go."""

    middle: float
    least: float
    most: float


def read(table: str) -> list[dict[str, str]]:
    """The rows of a table in Markdown, each by its headings: the inverse of `markdown`."""
    lines = [[cell.strip() for cell in line.strip().strip("|").split("|")] for line in table.strip().splitlines()]
    headings, _, *rows = lines
    return [dict(zip(headings, row, strict=True)) for row in rows]


def spread(cell: str) -> Spread:
    """The numbers of a cell that `mean_and_range` or `median_and_range` wrote, in its own unit.

    Raises:
        ValueError: The cell has others, or none.
    """
    numbers = [float(number) for number in re.findall(r"(?<![\w.])-?\d+(?:\.\d+)?", cell)]
    if len(numbers) not in (1, 3):
        raise ValueError(f"{cell!r} is neither one number nor one and its range.")
    return Spread(numbers[0], min(numbers), max(numbers))


def _and_range(middle: float, values: Sequence[float], form: str) -> str:
    average, least, most = (unsigned_zero(form.format(value)) for value in (middle, min(values), max(values)))
    return average if least == most else f"{average} ({least} to {most})"


def unsigned_zero(text: str) -> str:
    """A number's text, without the sign that is left of a negative number rounded to zero."""
    return text[1:] if re.fullmatch(r"-[0.]+\D*", text) else text
