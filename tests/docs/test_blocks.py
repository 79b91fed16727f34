"""Every code block of README, documentation and docstrings is one that runs, or a command for a terminal."""

import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from docs.pages import ROOT, SOURCES, docstrings

FENCE = re.compile(r"^ *(?:```|~~~)(.*)$", re.M)


@pytest.mark.parametrize("page", SOURCES, ids=lambda page: str(page.relative_to(ROOT)))
def test_blocks_are_python_that_runs_or_commands(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    fences = FENCE.findall(text)
    assert {opening.strip() for opening in fences[::2]} <= {"python", "console"}
    assert {closing.strip() for closing in fences[1::2]} <= {""}
    assert re.findall(r"<!-- skip: (?!end|(?:start|next) if\(lacks\()", text) == []  # nothing is skipped for good


def test_pytest_runs_the_blocks_of_every_page() -> None:
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "README.md", "docs"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    blocks = {page: len(re.findall(r"^```python", page.read_text(encoding="utf-8"), re.M)) for page in SOURCES}
    assert sum(blocks.values()) > 50
    missing = [page for page, count in blocks.items() if listed.count(f"{page.relative_to(ROOT)}::line") < count]
    assert not missing


def does_not_run(docstring: str) -> list[str]:
    """What a page shows as a block of code, and doctest passes over: literal blocks, and fences without a prompt."""
    fenced = [block for block in re.findall(r"```.*?```", docstring, re.S) if ">>>" not in block]
    return fenced + re.findall(r"^.*::\n\n +(?!>>>).*$", docstring, re.M)


@pytest.mark.parametrize(
    "path", sorted((ROOT / "src").rglob("*.py")), ids=lambda path: str(path.relative_to(ROOT / "src"))
)
def test_code_in_docstrings_is_doctests(path: Path) -> None:
    assert [block for docstring in docstrings(path) for block in does_not_run(docstring)] == []


def test_a_block_that_does_not_run_is_seen() -> None:
    assert does_not_run("As so::\n\n    x = 1\n")
    assert does_not_run("```python\nx = 1\n```")
    assert not does_not_run("As so:\n\n    >>> 1\n    1\n")


def test_where_nothing_may_be_skipped_a_missing_package_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    found = runpy.run_path(str(ROOT / "conftest.py"))["lacks"]
    monkeypatch.delenv("CI", raising=False)
    assert found("no_such_package")
    monkeypatch.setenv("CI", "true")
    assert not found("torch")
    with pytest.raises(ModuleNotFoundError, match="no_such_package is missing"):
        found("no_such_package")
