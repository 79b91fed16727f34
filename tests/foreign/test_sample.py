"""A few modules of a few foreign models, held against the oracle; `make foreign` does it for all."""

import contextlib

import pytest
import torch

import gradroute as gr
from foreign import judge, oracle
from foreign.batches import LABELS
from foreign.models import MODELS

SAMPLE = {
    "LlamaForCausalLM": ("", "model.layers.0", "model.layers.0.self_attn", "model.layers.1.mlp.down_proj", "lm_head"),
    "T5ForConditionalGeneration": ("encoder.block.0.layer.0", "decoder.block.1.layer.1", "lm_head"),
    "convnext": ("features.1.0", "features.1.0.block.2", "features.1.0.block.3", "features.2.1"),
    "mobilenet_v3_small": ("features.1", "features.1.block.1.fc1", "features.0.2", "classifier.0"),
}


@pytest.mark.parametrize("name", SAMPLE)
def test_every_module_of_the_sample_holds(name):
    found = list(judge.outcomes(MODELS[name], SAMPLE[name]))
    assert {one.module for one in found} == set(SAMPLE[name])
    assert [one for one in found if one.result not in ("held", "not applicable")] == []
    assert {one.level for one in found if one.result == "held"} == set(judge.LEVELS)
    assert {one.why for one in found if one.result == "not applicable"} <= {"has no parameters"}


class RoutesNothing(gr.Router):
    def __call__(self, labels):
        return contextlib.nullcontext()


class RoutesTheOtherLevel(gr.Router):
    def __init__(self, model, sites):
        other = {"activations": "parameters", "parameters": "activations"}
        sites = {
            name: gr.Site(site.spec, level=other[site.level], dim=site.dim, index=site.index)
            for name, site in sites.items()
        }
        super().__init__(model, sites)


@pytest.mark.parametrize("broken", [RoutesNothing, RoutesTheOtherLevel])
def test_a_router_that_does_something_else_fails(broken, monkeypatch):
    monkeypatch.setattr(gr, "Router", broken)
    name = "LlamaForCausalLM"
    found = list(judge.outcomes(MODELS[name], only=("model.layers.0.self_attn", "model.layers.1.mlp.down_proj")))
    assert {one.result for one in found} == {"FAILED"}


@pytest.mark.parametrize("name", SAMPLE)
def test_two_runs_of_a_plain_model_are_alike(name):
    _, batch = MODELS[name].make()
    one, other = (oracle.run(MODELS[name].make()[0], batch) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one.outputs, other.outputs, strict=True))
    assert one.gradients.keys() == other.gradients.keys()
    assert all(torch.equal(g, other.gradients[n]) for n, g in one.gradients.items())


def test_the_batch_mixes_two_labels_and_units_of_all_kinds():
    assert set(LABELS.tolist()) == {0, 1}
    kinds = {tuple((column != 0).tolist()) for column in oracle.unit_weights(4).T}
    assert kinds == {(True, False), (False, True), (True, True), (False, False)}
