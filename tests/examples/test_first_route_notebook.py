"""The notebook: valid, without outputs that could be old, and its cells run from first to last and show what they say."""

import ast
import json

import pytest
import torch

from project import ROOT

NOTEBOOK = json.loads((ROOT / "examples" / "first_route.ipynb").read_text(encoding="utf-8"))
CELLS = NOTEBOOK["cells"]
CODE = ["".join(cell["source"]) for cell in CELLS if cell["cell_type"] == "code"]


def test_it_is_a_notebook_as_the_format_says():
    """What nbformat 4.5 demands of each cell, without its package."""
    assert (NOTEBOOK["nbformat"], NOTEBOOK["nbformat_minor"]) == (4, 5)
    assert NOTEBOOK["metadata"]["kernelspec"].keys() == {"name", "display_name", "language"}
    ids = [cell["id"] for cell in CELLS]
    assert len({*ids}) == len(ids)
    for cell in CELLS:
        of_code = {"execution_count", "outputs"} if cell["cell_type"] == "code" else set()
        assert cell.keys() == {"cell_type", "id", "metadata", "source"} | of_code
        assert all(isinstance(line, str) for line in cell["source"])


def test_no_output_is_kept_that_could_be_old():
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in CELLS if "outputs" in cell)


def test_its_cells_run_and_show_what_they_say(capsys):
    names = {}
    for source in CODE:
        tree = ast.parse(source)
        exec(compile(tree, "first_route.ipynb", "exec"), names)
    assert names["routed_accuracy"] > 0.95
    assert names["unrouted_accuracy"] < 0.8
    assert names["router"].sites == {}
    error, without, labels = names["error"], names["without"], names["labels"]
    lost = torch.stack([(without - error)[labels == label].mean() for label in range(3)])
    assert lost.argmax() == 1
    assert lost[1] > 10 * lost[[0, 2]].abs().max()
    assert "the largest unit names the class" in capsys.readouterr().out


def test_where_the_library_is_missing_the_first_cell_installs_it(monkeypatch):
    import importlib.util
    import subprocess

    commands = []
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(subprocess, "run", lambda command, **options: commands.append((command[1:], options)))
    exec(CODE[0], {})
    assert commands == [(["-m", "pip", "install", "-q", "gradroute"], {"check": True})]


@pytest.mark.parametrize(
    "cell", [cell for cell in CELLS if cell["cell_type"] == "markdown"], ids=lambda cell: cell["id"]
)
def test_files_that_it_names_are_there(cell):
    import re

    for path in re.findall(r"`(docs/[^`]*)`", "".join(cell["source"])):
        assert (ROOT / path).exists()
