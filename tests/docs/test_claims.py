"""Whatever a page says raises, is refused or warns, a test shows: its name stands beside the claim, in a comment.

The comment is `shown by:` and names of tests, in the same row of a table, item of a list or paragraph.
"""

import ast
import re
from pathlib import Path

import pytest

from docs.pages import ROOT, SOURCES

CLAIM = re.compile(r"\b(?:raises|refuses|(?:is|are) refused|warns)\b")
SHOWN = re.compile(r"<!-- shown by: (.*?) -->")
CODE = re.compile(r"^ *```.*?^ *```|^ *>>>.*?$", re.S | re.M)


def pieces(text: str) -> list[str]:
    """Rows of tables, items of lists and paragraphs, without blocks of code."""
    text = CODE.sub("\n\n", text)
    return re.split(r"\n(?:\s*\n|(?=\||- |\d+\. |!!! ))", text)


def unshown(text: str) -> list[str]:
    return [piece for piece in pieces(text) if CLAIM.search(re.sub(r"#.*$", "", piece)) and not SHOWN.search(piece)]


def named(text: str) -> list[str]:
    return [name for names in SHOWN.findall(text) for name in names.split(", ")]


def exists(test: str) -> bool:
    path, _, name = test.partition("::")
    if not (ROOT / path).is_file():
        return False
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    return any(isinstance(node, ast.FunctionDef) and node.name == name for node in ast.walk(tree))


@pytest.mark.parametrize("page", SOURCES, ids=lambda page: str(page.relative_to(ROOT)))
def test_each_claim_names_a_test_that_exists(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert unshown(text) == []
    assert [test for test in named(text) if not exists(test)] == []


def test_a_claim_without_a_test_and_a_test_that_does_not_exist_are_seen() -> None:
    this = f"{Path(__file__).relative_to(ROOT)}::test_each_claim_names_a_test_that_exists"
    assert unshown("| a | raises |\n| b | raises <!-- shown by: x::y --> |") == ["| a | raises |"]
    assert unshown("```python\nit(raises)\n```") == []
    assert exists(this)
    assert not exists(f"{this}_not")
