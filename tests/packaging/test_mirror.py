"""Every file of src has a test file of its name, in folders like its own."""

import pytest

from project import ROOT, SOURCE

PACKAGE, UNIT = SOURCE / "gradroute", ROOT / "tests" / "unit"
TRIVIAL = ("__init__", "__main__")
FILES = [path.relative_to(PACKAGE) for path in sorted(PACKAGE.rglob("*.py")) if path.stem not in TRIVIAL]


def mirrored(path):
    return path.with_name(f"test_{path.stem.removeprefix('_')}.py")


@pytest.mark.parametrize("path", FILES, ids=str)
def test_every_file_has_a_test_file_of_its_name(path):
    tests = UNIT / mirrored(path)
    assert tests.is_file()
    assert "def test_" in tests.read_text()


def test_every_test_file_is_that_of_a_file():
    wanted = {mirrored(path) for path in FILES}
    assert {path.relative_to(UNIT) for path in UNIT.rglob("test_*.py")} == wanted
