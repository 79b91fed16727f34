"""Importing gradroute costs what importing torch costs: it loads nothing else. (`benchmarks` measures the time.)"""

import json
import subprocess
import sys

import pytest

from project import public_names

LOADED = """
import importlib, json, sys
import torch

before = set(sys.modules)
for name in sys.argv[1:]:
    importlib.import_module(name)
json.dump(sorted(set(sys.modules) - before), sys.stdout)
"""


def loaded_beside_torch(*names):
    """The modules, other than gradroute's and the standard library's, that these load and torch does not."""
    done = subprocess.run([sys.executable, "-c", LOADED, *names], capture_output=True, text=True, check=True)
    own = {"gradroute", *sys.stdlib_module_names}
    return [name for name in json.loads(done.stdout) if name.partition(".")[0] not in own]


@pytest.mark.parametrize("names", [["gradroute"], list(public_names())], ids=["gradroute", "all that is public"])
def test_no_module_is_loaded_that_torch_does_not_load(names):
    assert loaded_beside_torch(*names) == []


def test_a_module_that_is_loaded_would_be_seen():
    assert "torch._dynamo" in loaded_beside_torch("gradroute.autograd._dynamo")
