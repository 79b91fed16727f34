"""docs/moving.md is true, cell by cell: each row of its tables names a test that runs the other way beside ours.

So does each row of README's comparison, which the page shows, too.
"""

import re

import pytest

from docs.pages import ROOT

PAGE = (ROOT / "docs" / "moving.md").read_text(encoding="utf-8")
ROWS = [line for table in re.findall(r"^\|.*\n\| --- .*\n((?:\|.*\n)+)", PAGE, re.M) for line in table.splitlines()]


def test_the_page_has_its_tables() -> None:
    assert len(ROWS) > 40


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.split("|")[1].strip()[:40])
def test_each_row_names_a_test_of_the_other_way(row: str) -> None:
    """That these tests exist is held by test_claims.py."""
    [shown] = re.findall(r"<!-- shown by: (.*?) -->", row)
    assert all(name.startswith("tests/moving/test_") for name in shown.split(", "))


def test_each_row_of_the_comparison_names_a_test() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    table = re.search(r"start:comparison\] -->\n\|[^\n]*\n\| --- [^\n]*\n(.*?)\n\n", readme, re.DOTALL)[1]
    rows = table.split("\n|")  # what shows the last row stands behind the mark that ends the snippet
    assert len(rows) > 5
    assert [row for row in rows if "<!-- shown by: " not in row] == []
