"""Every code block of README and documentation is one that runs, or a command for a terminal."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from docs.pages import ROOT, SOURCES

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
