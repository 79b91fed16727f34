"""Tables as text, markdown, HTML and for rich; and what JSON can carry."""

from __future__ import annotations

import dataclasses
import html as escaping
import importlib.util
import math
import sys
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..spec import UNLABELED

MAX_ROWS = 24


@dataclass(frozen=True)
class Table:
    """A title, a header, and rows of cells."""

    title: str
    header: tuple[str, ...]
    rows: Sequence[tuple[Any, ...]]

    def shown(self) -> list[tuple[str, ...]]:
        """The rows as text, cut to what a person reads."""
        rows = [tuple(str(item) for item in row) for row in self.rows[:MAX_ROWS]]
        if len(self.rows) > MAX_ROWS:
            rows.append((f"... ({len(self.rows) - MAX_ROWS} more)", *[""] * (len(self.header) - 1)))
        return rows


class Report:
    """What is shown as a title, tables and notes: by `print`, in notebooks, by rich, and as markdown."""

    def to_markdown(self) -> str:
        """The report as markdown."""
        return markdown(self._tables(), self._title(), self._notes())

    def __str__(self) -> str:
        return text(self._tables(), self._title(), self._notes())

    def __rich__(self) -> Any:
        """What rich prints, where it is installed."""
        return rich(self._tables(), self._title(), self._notes())

    def _repr_html_(self) -> str:
        return html(self._tables(), self._title(), self._notes())

    def _title(self) -> str:
        raise NotImplementedError

    def _tables(self) -> list[Table]:
        raise NotImplementedError

    def _notes(self) -> Sequence[str]:
        return ()


def cell(value: Any) -> str:
    """A value as a table shows it: numbers in three digits."""
    if isinstance(value, float):
        return "0" if value == 0 else f"{value:.3g}"
    return str(value)


def percent(value: float) -> str:
    """A share as a percentage.

    >>> percent(0.1234), percent(0.00001), percent(0.0)
    ('12.3 %', '0.001 %', '0 %')
    """
    return f"{100 * value:.3g} %"


def units(numbers: Sequence[int], limit: int = 6) -> str:
    """Unit numbers, consecutive ones as ranges.

    >>> units([0, 1, 2, 5]), units([]), units(range(0, 40, 2))
    ('0-2, 5', 'all', '0, 2, 4, 6, 8, 10, ... (14 more)')
    """
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    shown = [str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs]
    more = [f"... ({len(shown) - limit} more)"] if len(shown) > limit else []
    return ", ".join([*shown[:limit], *more]) or "all"


def text(tables: Sequence[Table], title: str, notes: Sequence[str]) -> str:
    """What `print` shows: on a terminal as rich draws it, where it is installed, else in aligned columns."""
    if sys.stdout.isatty() and importlib.util.find_spec("rich") is not None:
        from rich.console import Console  # noqa: PLC0415  # optional

        console = Console(color_system=None)  # no codes, which would end up in logs
        with console.capture() as captured:
            console.print(rich(tables, title, notes))
        return captured.get().rstrip()
    return _aligned(tables, title, notes)


def _aligned(tables: Iterable[Table], title: str, notes: Sequence[str]) -> str:
    parts = [title]
    for table in tables:
        rows = [table.header, *table.shown()]
        # The last column is as wide as it is: nothing stands to the right of it.
        widths = [max(len(row[column]) for row in rows) for column in range(len(table.header) - 1)]
        lines = ["  ".join([*map(str.ljust, row, widths), row[-1]]).rstrip() for row in rows]
        parts.append("\n".join([table.title, *(f"  {line}" for line in lines)]))
    parts += [f"Note: {note}" for note in notes]
    return "\n\n".join(parts)


def markdown(tables: Iterable[Table], title: str, notes: Sequence[str]) -> str:
    """Tables in the syntax of GitHub."""
    parts = [f"**{title}**"]
    for table in tables:
        rows = [table.header, ("---",) * len(table.header), *table.shown()]
        parts.append(f"*{table.title}*\n\n" + "\n".join(f"| {' | '.join(map(_escaped, row))} |" for row in rows))
    parts += [f"Note: {note}" for note in notes]
    return "\n\n".join(parts) + "\n"


def _escaped(item: str) -> str:
    return item.replace("|", "\\|").replace("\n", " ")


def html(tables: Iterable[Table], title: str, notes: Sequence[str]) -> str:
    """Tables for a notebook."""
    parts = [f"<p><b>{escaping.escape(title)}</b></p>"]
    for table in tables:
        head = "".join(f"<th>{escaping.escape(item)}</th>" for item in table.header)
        body = "".join(
            "<tr>" + "".join(f"<td>{escaping.escape(item)}</td>" for item in row) + "</tr>" for row in table.shown()
        )
        caption = f"<caption>{escaping.escape(table.title)}</caption>"
        parts.append(f"<table>{caption}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>")
    parts += [f"<p>Note: {escaping.escape(note)}</p>" for note in notes]
    return "".join(parts)


def rich(tables: Iterable[Table], title: str, notes: Sequence[str]) -> Any:
    """What `rich.print` shows.

    Raises:
        ImportError: rich is missing.
    """
    from rich.console import Group  # noqa: PLC0415  # optional; only rich itself calls this
    from rich.table import Table as RichTable  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    parts: list[Any] = [Text(title, style="bold")]
    for table in tables:
        made = RichTable(*table.header, title=table.title, title_justify="left")
        for row in table.shown():
            made.add_row(*(Text(item) for item in row))
        parts.append(made)
    return Group(*parts, *(Text(f"Note: {note}", style="dim") for note in notes))


def jsonable(value: Any) -> Any:
    """Dataclasses, mappings and sequences as what JSON can carry; a number that is not finite as None."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: jsonable(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): jsonable(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [jsonable(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if isinstance(value, str | int | float | bool) or value is None else str(value)


def label_name(label: Hashable) -> str:
    """A label as tables show it."""
    if isinstance(label, tuple):
        return "+".join(label_name(part) for part in label)
    return "unlabeled" if label == UNLABELED else str(label)
