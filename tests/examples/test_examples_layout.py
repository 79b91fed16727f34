"""The examples stand side by side: what they share is in `common`, and none is built on another."""

import ast
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
PACKAGES = {path.parent.name for path in EXAMPLES.glob("*/__init__.py")}
#: What a reader of the reference example meets first; all else is in folders of its own.
TOP = {"__init__", "__main__", "cli", "config", "evaluate", "labels", "model", "run", "train"}


def imported(source: str) -> set[str]:
    """The first names of all modules that a file imports, within functions too."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide where a name comes from"
            names.add((node.module or "").split(".")[0])
    return names


@pytest.mark.parametrize("package", sorted(PACKAGES))
def test_an_example_imports_no_other(package: str) -> None:
    allowed = {package} if package == "common" else {package, "common"}
    files = sorted((EXAMPLES / package).rglob("*.py"))
    assert files
    wrong = {path.name: found for path in files if (found := imported(path.read_text()) & PACKAGES - allowed)}
    assert wrong == {}


def test_what_is_shared_is_used_by_more_than_one_example() -> None:
    users = {
        package
        for package in PACKAGES
        for path in (EXAMPLES / package).rglob("*.py")
        if "common" in imported(path.read_text())
    }
    assert users == PACKAGES
    assert len(PACKAGES - {"common"}) >= 2


def test_the_check_sees_imports_of_every_form() -> None:
    source = "import a.b\nfrom c.d import e\ndef f():\n    from g import h\n"
    assert imported(source) == {"a", "c", "g"}


def test_the_reference_example_shows_little_at_its_top() -> None:
    assert {path.stem for path in (EXAMPLES / "mnist_vae").glob("*.py")} == TOP
