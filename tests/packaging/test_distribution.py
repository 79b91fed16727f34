"""What is published: the sdist holds the project, the wheel the library alone, and torch and numpy are all it needs."""

import importlib.metadata
import json
import re
import subprocess
import sys
import tarfile
import zipfile

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from trove_classifiers import classifiers

import gradroute
from project import MODULES, PROJECT, ROOT, SOURCE

PACKAGE = {path.relative_to(SOURCE).as_posix() for path in SOURCE.rglob("*.py")} | {"gradroute/py.typed"}


@pytest.fixture(scope="module")
def dist(tmp_path_factory):
    """The sdist, and the wheel that is built from it, as `make dist` builds them but for the environment of its own."""
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, ROOT]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture(scope="module")
def wheel(dist):
    (path,) = dist.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """A folder with the wheel installed into it, as pip does it."""
    folder = tmp_path_factory.mktemp("installed")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--target", folder, wheel]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_the_wheel_is_the_package_its_marker_of_types_and_the_licence(wheel):
    info = f"gradroute-{gradroute.__version__}.dist-info"
    expected = PACKAGE | {f"{info}/{name}" for name in ("METADATA", "WHEEL", "RECORD", "licenses/LICENSE")}
    with zipfile.ZipFile(wheel) as archive:
        assert set(archive.namelist()) == expected
        assert archive.read(f"{info}/licenses/LICENSE") == (ROOT / "LICENSE").read_bytes()


def test_the_sdist_is_what_is_under_version_control(dist):
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if listed.returncode:
        pytest.skip("not a git checkout")
    expected = {name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()}
    (path,) = dist.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        held = {name.partition("/")[2] for name in archive.getnames()}
    assert held == expected | {"PKG-INFO"}


# ------------------------------------------------------------------ metadata


@pytest.fixture(scope="module")
def metadata(installed):
    (found,) = importlib.metadata.distributions(path=[str(installed)])
    return found.metadata


def test_metadata(metadata):
    assert metadata["Name"] == "gradroute"
    assert metadata["Version"] == PROJECT["version"] == gradroute.__version__
    assert metadata["Requires-Python"] == ">=3.11"
    assert metadata["License-Expression"] == "MIT"
    assert metadata["Summary"] == PROJECT["description"]
    assert metadata["Description-Content-Type"] == "text/markdown"
    assert metadata.get_payload() == (ROOT / "README.md").read_text()
    assert set(metadata["Keywords"].split(",")) == set(PROJECT["keywords"])


def test_classifiers_exist_and_claim_no_python_that_is_not_tested(metadata):
    given = metadata.get_all("Classifier")
    assert set(given) <= classifiers
    assert "Typing :: Typed" in given
    claimed = {text.rpartition(" ")[2] for text in given if re.search(r":: 3\.\d+$", text)}
    workflow = yaml.safe_load((ROOT / ".github/workflows/test.yml").read_text())
    assert claimed
    assert claimed <= set(workflow["jobs"]["check"]["strategy"]["matrix"]["python"])


def test_urls_are_addresses_of_something(metadata):
    urls = dict(entry.split(", ", 1) for entry in metadata.get_all("Project-URL"))
    assert urls
    for url in urls.values():
        assert re.fullmatch(r"https://[^<>{}\s]+", url)
        assert "example" not in url


def test_torch_and_numpy_are_the_only_requirements(metadata):
    required = [Requirement(text) for text in metadata.get_all("Requires-Dist")]
    always = [requirement.name for requirement in required if requirement.marker is None]
    assert sorted(always) == ["numpy", "torch"]
    assert set(metadata.get_all("Provides-Extra")) == set(PROJECT["optional-dependencies"])


# ------------------------------------------------------------------ with torch and numpy alone

ALONE = """
import contextlib, importlib, importlib.machinery, io, json, sys

hidden, modules = json.load(sys.stdin)

class Without(importlib.machinery.PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] in hidden else super().find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(importlib.machinery.PathFinder)] = Without
failed = {}
for name in modules:
    try:
        importlib.import_module(name)
    except ImportError as error:
        failed[name] = str(error)
import gradroute.__main__

with contextlib.redirect_stdout(io.StringIO()):
    code = gradroute.__main__.main(["--no-compile"])
json.dump([gradroute.__file__, failed, code], sys.stdout)
"""


def needed_by(*names):
    """The distributions that pip installs for these."""
    found, missing = set(), list(names)
    while missing:
        name = canonicalize_name(missing.pop())
        try:
            requires = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            continue  # for another platform
        if name not in found:
            found.add(name)
            required = map(Requirement, requires)
            missing += [r.name for r in required if r.marker is None or r.marker.evaluate({"extra": ""})]
    return found


def test_the_wheel_works_with_torch_and_numpy_alone(installed):
    """In a process that finds no other distribution; what needs an extra says which one."""
    allowed = needed_by("torch", "numpy")
    of_module = importlib.metadata.packages_distributions()
    hidden = {top for top, names in of_module.items() if not {*map(canonicalize_name, names)} & allowed} - {"gradroute"}
    assert {"matplotlib", "transformers", "hypothesis"} <= hidden
    done = subprocess.run(
        [sys.executable, "-c", ALONE],
        input=json.dumps([sorted(hidden), MODULES]),
        env={"PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    file, failed, code = json.loads(done.stdout)
    assert file == str(installed / "gradroute/__init__.py")
    assert code == 0
    assert "gradroute" not in failed
    for module, message in failed.items():
        extra = re.search(r"The extra '(\w+)'", message)
        assert extra, f"{module}: {message}"
        assert extra[1] in PROJECT["optional-dependencies"]
