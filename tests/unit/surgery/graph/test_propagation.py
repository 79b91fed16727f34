"""Units are followed from the weights that make them to those that read them, or refused with the reason."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm

import gradroute as gr
from gradroute.errors import SiteError
from gradroute.surgery import contract
from surgery_cases import (
    IDS,
    IMAGES,
    ROWS,
    Grouped,
    Masked,
    Shared,
    Summed,
    Twice,
    channels,
    gpt2,
    mlp,
    resnet,
    spec,
)


@pytest.mark.parametrize(
    ("build", "sites", "x", "reason"),
    [
        (resnet, {"layer1.0.conv2": channels(64)}, IMAGES, r"add in 'layer1\.0' joins.*residual"),
        (
            resnet,
            {"layer1.0.conv1": channels(64)},
            IMAGES,
            r"conv2d in 'layer1\.0\.conv2' still reads a constant other",
        ),
        (gpt2, {"transformer.h.0.mlp.c_proj": spec(16)}, IDS, r"add in 'transformer\.h\.0' joins.*residual"),
        (gpt2, {"transformer.h.0.mlp": spec(16)}, IDS, "residual"),
        (gpt2, {"transformer.h.0.attn.c_proj": gr.Site(spec(16), on="input")}, IDS, "whole heads.*no part of one"),
        (mlp, {"6": gr.RoutingSpec({"forget": 0, "retain": 1}, 2)}, ROWS, "part of the model's output"),
        (lambda: Shared(around=True), {"act": spec(8)}, ROWS, "'b' reads the units, but not only by way of the site"),
        (lambda: nn.Sequential(nn.Linear(5, 8), nn.LayerNorm(8), nn.Linear(8, 2)), {"0": spec(8)}, ROWS, "mixes the"),
        (
            lambda: nn.Sequential(nn.Conv2d(3, 6, 3), nn.GroupNorm(2, 6), nn.Conv2d(6, 2, 3)),
            {"0": channels(6)},
            IMAGES,
            "group_norm in '1' mixes the units of each group",
        ),
        (lambda: Summed(nn.ReLU()), {"a": spec(8)}, ROWS, "add joins the units with another tensor"),
        (Masked, {"act": spec(8)}, ROWS, "where joins the units with another tensor"),
        (lambda: nn.Sequential(nn.Linear(5, 8), nn.Softmax(-1), nn.Linear(8, 2)), {"0": spec(8)}, ROWS, "mixes the"),
        (lambda: nn.Sequential(nn.ReLU(), nn.Linear(5, 2)), {"0": spec(5)}, ROWS, "the model's own input"),
        (
            lambda: nn.Sequential(nn.Conv2d(3, 6, 3), nn.Conv2d(6, 6, 3, groups=6), nn.Conv2d(6, 2, 3)),
            {"0": channels(6)},
            IMAGES,
            "grouped convolution",
        ),
        (
            lambda: nn.Sequential(nn.Conv2d(3, 6, 3), nn.Sigmoid(), nn.Conv2d(6, 2, 3, padding=1)),
            {"0": channels(6)},
            IMAGES,
            "a constant other than 0 .* at the padded edges",
        ),
        (
            lambda: nn.Sequential(nn.ConvTranspose2d(3, 6, 3), nn.ConvTranspose2d(6, 4, 3, groups=2)),
            {"0": channels(6)},
            IMAGES,
            "grouped convolution",
        ),
        (
            lambda: nn.Sequential(nn.Conv2d(3, 6, 3), nn.Sigmoid(), nn.ConvTranspose2d(6, 2, 2, stride=2)),
            {"0": channels(6)},
            IMAGES,
            "a constant other than 0 .* no bias that could make up for it at each position",
        ),
        (
            lambda: nn.Sequential(nn.Conv2d(3, 6, 3), nn.Sigmoid(), nn.ZeroPad2d(1), nn.Conv2d(6, 2, 3)),
            {"0": channels(6)},
            IMAGES,
            "reads the units, but not only by way of the site: what it reads is not known to be constant",
        ),
        (
            lambda: nn.Sequential(nn.Linear(5, 8), nn.GRU(8, 4)),
            {"0": spec(8)},
            ROWS,
            "gru in '1'.*not known",
        ),
        (
            lambda: nn.Sequential(spectral_norm(nn.Linear(5, 8)), nn.GELU(), nn.Linear(8, 2)),
            {"0": spec(8)},
            ROWS,
            "in '0.parametrizations.weight.0'.*not known",
        ),
        (lambda: nn.Sequential(nn.Linear(5, 8), nn.GLU(), nn.Linear(4, 2)), {"0": spec(8)}, ROWS, "glu.*not known"),
        (
            Grouped,
            {"out": gr.Site(gr.RoutingSpec({"forget": 0}, 4).repeat(4), on="input")},
            torch.randn(2, 5, 6),
            "shares keys and values between heads",
        ),
        (Twice, {"first": gr.RoutingSpec({"forget": 0, "retain": 1}, 5)}, ROWS, "model's own input"),
    ],
)
def test_other_uses_of_a_unit_are_refused_with_the_reason(build, sites, x, reason):
    model = build().eval()
    before = copy.deepcopy(model.state_dict())
    router = gr.Router(model, sites)
    with pytest.raises(SiteError, match=reason):
        contract(router, "forget", example=x)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
