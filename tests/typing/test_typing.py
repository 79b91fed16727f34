"""The types that users see: a module that uses every public name passes ``mypy --strict``, and misuses do not."""

import ast
import inspect
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
from torch.autograd import Function

import gradroute
from project import public_names

HERE = Path(__file__).parent
USES, MISUSES = HERE / "uses_every_name.py", HERE / "misuses.py"


@pytest.fixture(scope="module")
def errors():
    """The codes of the errors that mypy finds, by file and line."""
    source = Path(gradroute.__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--config-file=", "--no-error-summary", USES, MISUSES],
        env={**os.environ, "MYPYPATH": str(source)},
        capture_output=True,
        text=True,
        check=False,
        cwd=HERE.parents[1],  # where the cache of `make types` lies
    )
    found = {}
    for line in (done.stdout + done.stderr).splitlines():
        if not re.match(r".*: note: ", line):
            error = re.fullmatch(r"(.*\.py):(\d+): error: .*\[([\w-]+)\]", line)
            assert error, line
            found.setdefault((Path(error[1]).name, int(error[2])), []).append(error[3])
    return found


def test_the_public_api_type_checks(errors):
    assert {place: codes for place, codes in errors.items() if place[0] != MISUSES.name} == {}


def test_misuses_are_refused_and_nothing_is_any_in_disguise(errors):
    expected = {}
    for number, line in enumerate(MISUSES.read_text().splitlines(), start=1):
        if marked := re.search(r"  # E(?:: (.*))?$", line):
            expected[MISUSES.name, number] = marked[1].split(", ") if marked[1] else None
    found = {place: codes for place, codes in errors.items() if place[0] == MISUSES.name}
    assert found.keys() == expected.keys()
    assert {place: codes if expected[place] else None for place, codes in found.items()} == expected
    assert len(expected) > 20


def test_what_type_checks_also_runs():
    runpy.run_path(str(USES), run_name="__main__")


def test_every_public_name_is_used():
    used = set()
    for node in ast.walk(ast.parse(USES.read_text())):
        if isinstance(node, ast.Name | ast.Attribute):
            used.add(node.id if isinstance(node, ast.Name) else node.attr)
    names = {f"{module}.{name}" for module, exported in public_names().items() for name in exported}
    for module, exported in public_names().items():
        for name in exported:
            value = getattr(sys.modules[module], name)
            if inspect.isclass(value) and not issubclass(value, Function):
                names |= {f"{module}.{name}.{member}" for member in vars(value) if not member.startswith("_")}
    assert {name for name in names if name.rpartition(".")[2] not in used} == set()
