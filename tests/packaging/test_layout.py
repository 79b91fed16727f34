"""The list of files in CONTRIBUTING.md is complete, and a file imports only from those above it."""

import ast
import re

import pytest

from project import ROOT, SOURCE

PACKAGE = SOURCE / "gradroute"
LISTED = [
    name.rstrip("/") for name in re.findall(r"^\| `([\w/.]+)` \|", (ROOT / "CONTRIBUTING.md").read_text(), re.MULTILINE)
]
LISTED = [name.removesuffix(".py") for name in LISTED]


def files(name):
    path = PACKAGE / name
    return sorted(path.rglob("*.py")) if path.is_dir() else [path.with_suffix(".py")]


def imported(path):
    """The files and folders of the package whose names a file imports from when it is itself imported."""
    found = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.ImportFrom) and node.level:
            folder = path.parents[node.level - 1]
            parts = [node.module] if node.module else [alias.name for alias in node.names]
            targets = [(folder / part.replace(".", "/")).relative_to(PACKAGE).parts for part in parts]
            found |= {target[0] for target in targets if not target[0].startswith("__version")}
    return found


def test_the_list_is_complete():
    there = {path.stem for path in PACKAGE.glob("*.py")} | {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert there - {"__init__", "__main__"} == set(LISTED)
    assert len(LISTED) == len(set(LISTED))


@pytest.mark.parametrize("name", LISTED)
def test_imports_only_from_above(name):
    above = {*LISTED[: LISTED.index(name)], name}
    for path in files(name):
        assert imported(path) <= above, f"in {path.relative_to(ROOT)}"
