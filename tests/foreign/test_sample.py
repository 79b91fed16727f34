"""A few modules of a few foreign models, held against the oracle; `make foreign` does it for all."""

import contextlib

import pytest
import torch
from torch import nn

import gradroute as gr
from foreign import judge, oracle
from foreign.models import LABELS, MODELS

SAMPLE = {
    "LlamaForCausalLM": ("", "model.layers.0", "model.layers.0.self_attn", "model.layers.1.mlp.down_proj", "lm_head"),
    "T5ForConditionalGeneration": ("encoder.block.0.layer.0", "decoder.block.1.layer.1", "lm_head"),
    "mobilenet_v3_small": ("features.1", "features.1.block.1.fc1", "features.0.2", "classifier.0"),
}


@pytest.mark.parametrize("name", SAMPLE)
def test_every_module_of_the_sample_holds(name):
    found = list(judge.outcomes(MODELS[name], only=SAMPLE[name]))
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


@pytest.mark.parametrize(
    "layer",
    [nn.Linear(3, 4), nn.Conv2d(3, 4, 1), nn.LayerNorm(4), nn.BatchNorm2d(4), nn.Embedding(3, 4)],
    ids=lambda layer: type(layer).__name__,
)
def test_a_gradient_that_is_almost_zero_fails(layer):
    """The fourth unit is taught by nobody, the third by both labels."""
    for name, parameter in layer.named_parameters():
        for unit, fails in ((3, True), (2, False)):
            gradient = torch.zeros_like(parameter)
            gradient.movedim(1 if isinstance(layer, nn.Embedding) else 0, 0)[unit] = torch.finfo(torch.float32).tiny
            wrong = judge._not_silent(nn.Sequential(layer), "0", {f"0.{name}": gradient})
            assert bool(wrong) is fails


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
