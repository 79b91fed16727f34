"""Specs, labels and tensors for hypothesis; and what works without it."""

import importlib
import sys

import pytest
import torch
from torch import nn

import gradroute as gr
from gradroute.errors import UsageError
from gradroute.testing import specs

pytestmark = pytest.mark.filterwarnings(r"ignore:`torch\.jit\.script(_method)?` is deprecated")


SPEC = gr.RoutingSpec({0: [0, 1], 1: [2, 3]}, 4)


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.2), nn.LayerNorm(4), nn.Linear(4, 3))


def test_without_hypothesis_all_but_the_strategies_works(monkeypatch):
    for module in [name for name in sys.modules if name.startswith(("gradroute.testing", "hypothesis"))]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "hypothesis", None)
    testing = importlib.import_module("gradroute.testing")
    testing.assert_routed(net(), {"0": SPEC}, torch.randn(5, 3))
    with pytest.raises(ImportError, match=r"pip install hypothesis.*pip install '\.\[testing\]' in a clone"):
        testing.specs()
    with pytest.raises(AttributeError, match="no attribute 'spec'"):
        testing.spec


@pytest.mark.parametrize("given", [{"width": 0}, {"max_width": 0}])
def test_a_spec_without_units_is_refused_where_it_is_asked_for(given):
    with pytest.raises(gr.errors.SpecError, match="at least 1 unit"):
        specs(**given)


def test_a_kind_of_labels_that_there_is_none_of_is_refused():
    from gradroute.testing import label_tensors

    with pytest.raises(UsageError, match="one of integer, multi-hot, mixture or None; got 'ids'"):
        label_tensors(SPEC, (2,), "ids")
