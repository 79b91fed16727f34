"""Tables as text, markdown and HTML: every cell is there, and nothing in one breaks the table; what JSON can carry."""

import io
import json
from dataclasses import dataclass

import pytest

import gradroute as gr
from gradroute.diagnostics._reports import MAX_ROWS, Report, Table, cell, jsonable, label_name, percent, units

NASTY = "a|b <i>&\nc"


class Shown(Report):
    def __init__(self, rows):
        self.rows = rows

    def _title(self):
        return "What was found"

    def _tables(self):
        return [Table("One", ("name", "value"), self.rows), Table("Two", ("other",), [("cell",)])]

    def _notes(self):
        return ["a note"]


@pytest.mark.parametrize("show", [str, Report.to_markdown, Report._repr_html_], ids=["text", "markdown", "html"])
def test_everything_is_shown(show):
    shown = show(Shown([("first", 1.5), ("second", None)]))
    for part in ("What was found", "One", "name", "value", "first", "1.5", "second", "None", "Two", "cell", "a note"):
        assert part in shown


def test_rich_shows_the_same():
    console = pytest.importorskip("rich.console").Console(width=100, file=io.StringIO())
    console.print(Shown([("[bold]first", 1.5)]))
    shown = console.file.getvalue()
    assert all(part in shown for part in ("What was found", "[bold]first", "1.5", "cell", "a note"))


def test_no_cell_breaks_a_table():
    shown = Shown([(NASTY, 1)])
    [row] = [line for line in shown.to_markdown().splitlines() if line.startswith("| a")]
    assert row.replace("\\|", "").count("|") == 3
    assert "<i>" not in shown._repr_html_()


@pytest.mark.parametrize("n", [MAX_ROWS, MAX_ROWS + 1, 1000])
def test_long_tables_are_cut_and_say_how_much_is_left_out(n):
    shown = Table("t", ("number", "more"), [(number, 0) for number in range(n)]).shown()
    assert [row[0] for row in shown[:MAX_ROWS]] == [str(number) for number in range(MAX_ROWS)]
    left = [row[0] for row in shown[MAX_ROWS:]]
    assert left == ([f"... ({n - MAX_ROWS} more)"] if n > MAX_ROWS else [])
    assert all(len(row) == 2 for row in shown)


@pytest.mark.parametrize("numbers", [[0], [0, 1], [3, 5, 6, 7], list(range(0, 9, 2))])
def test_unit_numbers_can_be_read_back(numbers):
    read = []
    for part in units(numbers, limit=len(numbers)).split(", "):
        first, _, last = part.partition("-")
        read += range(int(first), int(last or first) + 1)
    assert read == numbers


def test_numbers_are_short_and_zero_is_zero():
    assert float(cell(1 / 3)) == pytest.approx(1 / 3, rel=1e-2)
    assert cell(0.0) == "0"
    assert cell("text") == "text"
    assert percent(1.0) == "100 %"


def test_labels_are_shown_by_their_names():
    assert label_name("cat") == "cat"
    assert label_name(gr.UNLABELED) == "unlabeled"
    assert label_name(("cat", 3)) == "cat+3"


def test_what_json_cannot_carry_becomes_what_it_can():
    @dataclass
    class Found:
        numbers: tuple
        by_label: dict

    found = Found((1, 2.5, float("inf"), float("nan")), {3: ("a", None), ("b", 1): Table})
    carried = json.loads(json.dumps(jsonable(found), allow_nan=False))
    assert carried == {"numbers": [1, 2.5, None, None], "by_label": {"3": ["a", None], "('b', 1)": str(Table)}}
