"""The files around a release agree with one another: version, citation, changelog, workflows, and what `.ci/run` does."""

import json
import os
import re

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from project import HOOK, PROJECT, ROOT

WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))
TARGETS = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def read(path):
    workflow = yaml.safe_load(path.read_text())
    workflow["on"] = workflow.pop(True)  # YAML 1.1 reads the key "on" as a truth value
    return workflow


def matrix():
    return read(ROOT / ".github/workflows/test.yml")["jobs"]["check"]["strategy"]["matrix"]


def commands(path):
    jobs = read(path)["jobs"].values()
    return [step["run"] for job in jobs for step in job.get("steps", []) if "run" in step]


def test_the_changelog_has_what_will_be_or_was_released():
    headings = re.findall(r"^## (.*)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    released = rf"{re.escape(PROJECT['version'])} - \d{{4}}-\d\d-\d\d"
    assert re.fullmatch(f"Unreleased|{released}", headings[0])


def test_the_citation_is_that_of_this_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()  # what the format demands
    assert citation["cff-version"] == "1.2.0"
    assert citation["title"] == PROJECT["name"]
    assert str(citation["version"]) == PROJECT["version"]
    assert citation["license"] == PROJECT["license"]
    assert citation["keywords"] == PROJECT["keywords"]
    assert citation["abstract"] == PROJECT["description"]
    assert citation["authors"] == PROJECT["authors"]
    assert HOOK["urls"]["Paper"] in {reference["url"] for reference in citation["references"]}


# ------------------------------------------------------------------ workflows


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_workflow_runs_what_there_is(path):
    workflow = read(path)
    assert workflow["on"]
    for name, job in workflow["jobs"].items():
        assert "uses" in job or job["runs-on"], name
        needs = job.get("needs", [])
        assert {*([needs] if isinstance(needs, str) else needs)} <= workflow["jobs"].keys()
        for step in job.get("steps", []):
            assert ("uses" in step) != ("run" in step)
            if "uses" in step:
                assert re.fullmatch(r"[\w-]+/[\w-]+@(v\d+|release/v\d+)", step["uses"])
        if "uses" in job:
            assert (ROOT / job["uses"]).is_file()
            assert "workflow_call" in read(ROOT / job["uses"])["on"]
    for command in commands(path):
        assert set(re.findall(r"\bmake ([a-z]+)", command)) <= TARGETS
        script = command.split()[0]
        if "/" in script and not script.startswith(".venv"):
            assert os.access(ROOT / script, os.X_OK)


def test_what_the_check_makes_exists():
    made = re.findall(r"^make (.*)$", (ROOT / ".ci/run").read_text(), re.MULTILINE)
    assert made
    assert set(" ".join(made).split()) <= TARGETS


def test_the_test_workflow_is_the_check():
    assert ".ci/run" in commands(ROOT / ".github/workflows/test.yml")


def test_the_documentation_is_published_only_with_its_live_page():
    (check,) = re.findall(r"^test -f site/\S+", (ROOT / ".ci/run").read_text(), re.MULTILINE)
    assert commands(ROOT / ".github/workflows/docs.yml") == ["make docs", check]


def test_every_python_that_may_install_it_is_tested_and_no_other():
    allowed = SpecifierSet(PROJECT["requires-python"])
    versions = matrix()["python"]
    assert all(version in allowed for version in versions)
    oldest = min(versions, key=lambda version: int(version.split(".")[1]))
    assert PROJECT["requires-python"] == f">={oldest}"


def test_every_python_that_is_promised_is_tested():
    promised = re.findall(r"Python :: (3\.\d+)", "\n".join(PROJECT["classifiers"]))
    assert matrix()["python"][: len(promised)] == promised


def test_torch_is_tested_at_its_lower_bound_and_at_its_latest():
    (torch,) = [Requirement(text) for text in PROJECT["dependencies"] if Requirement(text).name == "torch"]
    (bound,) = torch.specifier
    assert bound.operator == ">="
    assert matrix()["torch"] == [f"torch=={bound.version}.*", "torch"]


def test_every_torch_that_the_documentation_names_is_tested():
    columns = json.loads((ROOT / "docs/assets/composition/table.json").read_text())
    named = {SpecifierSet(f"=={'.'.join(version.split('.')[:2])}.*") for version in columns}
    latest = max(named, key=lambda minor: int(str(minor).split(".")[1]))
    tested = {Requirement(cell["torch"]).specifier for cell in matrix()["include"]}
    tested |= {Requirement(torch).specifier for torch in matrix()["torch"]}
    assert named - tested <= {latest}


def test_the_cells_that_are_left_out_are_there_to_be_left_out():
    for cell in matrix()["exclude"]:
        assert cell["python"] in matrix()["python"]
        assert cell["torch"] in matrix()["torch"]


def test_only_the_job_that_publishes_may_publish():
    """And only after all tests passed, with no secret: trusted publishing needs none."""
    for path in WORKFLOWS:
        workflow = read(path)
        assert workflow["permissions"] == {"contents": "read"}
        assert "secrets" not in path.read_text()
        for name, job in workflow["jobs"].items():
            assert "permissions" not in job or (path.stem, name) in {("release", "publish"), ("docs", "deploy")}
    release = read(ROOT / ".github/workflows/release.yml")
    assert release["on"] == {"push": {"tags": ["v*"]}}
    assert release["jobs"]["publish"]["permissions"] == {"id-token": "write"}
    assert set(release["jobs"]["publish"]["needs"]) == {"test", "build"}
    assert release["jobs"]["test"]["uses"] == "./.github/workflows/test.yml"
