"""Whatever a page promises, or says is refused, raises or warns, a test shows: its name stands beside the claim, in a comment.

The comment is `shown by:` and names of tests, in the same row of a table, item of a list or paragraph. The words of a promise, such as
"never" and "exactly", are kept for what a test shows; prose does with others, or with one of the few phrases that promise nothing.
"""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

from docs.pages import ROOT, SOURCES

PAGES = [*SOURCES, *sorted(ROOT.glob("examples/*/README.md"))]
CLAIM = re.compile(
    r"\b(?:raises|refuses|(?:is|are) refused|warns"  # what an error or a warning says
    r"|never|always|cannot|exact|exactly|bit for bit|bit-identical|bitwise)\b",  # a promise
    re.I,
)
#: What is said with these says nothing of what gradroute does: it tells a limit, or is about models and data.
NO_CLAIM = ("cannot know", "cannot see", "never answers", "never called", "never had", "never saw", "| never |")
SHOWN = re.compile(r"<!-- shown by: (.*?) -->")
CODE = re.compile(r"^ *```.*?^ *```|^ *>>>.*?$", re.S | re.M)


def pieces(text: str) -> list[str]:
    """Rows of tables, items of lists and paragraphs, without blocks of code."""
    text = CODE.sub("\n\n", text)
    return re.split(r"\n(?:\s*\n|(?=\||- |\d+\. |!!! ))", text)


def prose(piece: str) -> str:
    """A piece without comments, what is in backticks and runs of spaces: the words of a claim may be on two lines."""
    return " ".join(re.sub(r"<!--.*?-->|`[^`]*`", " ", piece, flags=re.S).split())


def claims(piece: str) -> list[str]:
    text = prose(piece)
    for phrase in NO_CLAIM:
        text = text.replace(phrase, "")
    return CLAIM.findall(text)


def unshown(text: str) -> list[str]:
    return [piece for piece in pieces(text) if claims(piece) and not SHOWN.search(piece)]


def named(text: str) -> list[str]:
    return [name for names in SHOWN.findall(text) for name in names.split(", ")]


@cache
def functions(path: Path) -> list[ast.FunctionDef]:
    """Those of a file, at any depth; none if there is no such file."""
    tree = ast.parse(path.read_text(encoding="utf-8") if path.is_file() else "")
    return [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]


def exists(test: str) -> bool:
    """Whether there is such a test, and one that is not expected to fail: that would show the contrary."""
    path, _, name = test.partition("::")
    found = [node for node in functions(ROOT / path) if node.name == name]
    marks = [ast.unparse(mark) for node in found for mark in node.decorator_list]
    return bool(found) and not any("mark.xfail" in mark or "mark.skip(" in mark for mark in marks)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_each_claim_names_a_test_that_exists(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert unshown(text) == []
    assert [test for test in named(text) if not exists(test)] == []


def test_each_phrase_that_claims_nothing_is_on_a_page() -> None:
    pages = [prose(page.read_text(encoding="utf-8")) for page in PAGES]
    assert [phrase for phrase in NO_CLAIM if not any(phrase in text for text in pages)] == []


@pytest.mark.parametrize(
    "claim",
    [
        "it raises",
        "This is refused.",
        "- **Never** lost",
        "exactly 0",
        "bit for\n  bit the same",
        "*bitwise*",
        "It cannot.",
    ],
)
def test_a_claim_without_a_test_is_seen(claim: str) -> None:
    assert unshown(f"Before.\n\n{claim}\n\nAfter.") == [claim]
    assert unshown(f"Before.\n\n{claim} <!-- shown by: a::b -->\n\nAfter.") == []


def test_a_claim_is_shown_by_the_comment_of_its_own_row() -> None:
    assert unshown("| a | raises |\n| b | raises <!-- shown by: x::y --> |") == ["| a | raises |"]


@pytest.mark.parametrize(
    "text", ["```python\nit(raises)\n```", "`never`", "a model that never\nsaw it", "<!-- always -->", "exactness"]
)
def test_what_claims_nothing_needs_no_test(text: str) -> None:
    assert unshown(text) == []


def test_a_phrase_that_claims_nothing_hides_no_claim_beside_it() -> None:
    assert unshown("it cannot know, and it never asks") != []


def test_a_test_that_does_not_exist_or_is_expected_to_fail_is_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    this = f"{Path(__file__).relative_to(ROOT)}::test_each_claim_names_a_test_that_exists"
    assert exists(this)
    assert not exists(f"{this}_not")
    assert not exists("tests/no_such_file.py::test_a")
    (tmp_path / "t.py").write_text("@pytest.mark.xfail(strict=True)\ndef test_a(): ...\ndef test_b(): ...\n")
    monkeypatch.setitem(exists.__globals__, "ROOT", tmp_path)
    assert exists("t.py::test_b")
    assert not exists("t.py::test_a")
