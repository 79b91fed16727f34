"""Level "parameters" on modules that must run twice: upstream learns whole, and once."""

from contextlib import nullcontext

import pytest
import torch
from torch import nn
from torch.autograd import forward_ad

import gradroute as gr
from gradroute.testing import assert_routed
from unit.router.unknown import MIXED, SPEC, WIDTH, Projected


class Attends(nn.Module):
    """Reads two arguments, of which a site may be on either or both."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.query, self.value = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x, context):
        return torch.softmax(self.query(x), -1) * self.value(context["states"])


class Around(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.before, self.inner = nn.Linear(3, 2 * WIDTH), Attends()

    def forward(self, x):
        x, states = self.before(x).chunk(2, -1)
        return self.inner(x, context={"states": states})


@pytest.mark.parametrize("also_output", [False, True])
@pytest.mark.parametrize("index", ["x", 1, "both"], ids=str)
def test_upstream_learns_whole_and_once_by_every_argument_whichever_a_site_is_on(index, also_output):
    model, x = Around(), torch.randn(5, 3)
    model(x).square().sum().backward()
    whole = model.before.weight.grad.clone()
    model.zero_grad()
    paths = [path for path in ("x", ("context", "states")) if index in ((path if path == "x" else 1), "both")]
    sites = [gr.Site(SPEC, on="input", level="parameters", index=path) for path in paths]
    sites += [gr.Site(SPEC, level="parameters")] * also_output
    router = gr.Router(model, {"inner": sites})
    with router(MIXED):
        model(x).square().sum().backward()
    torch.testing.assert_close(model.before.weight.grad, whole)
    router.remove()
    assert_routed(model, {"inner": sites}, x, MIXED)


@pytest.mark.parametrize("kind", [nn.Linear, Projected])
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:FutureWarning")  # torch's own, in forward mode
def test_forward_mode_differentiation_finds_the_tangent_of_what_is_upstream_whole(kind):
    module = kind(3, WIDTH) if kind is nn.Linear else kind()
    x, tangent = torch.randn(5, 3), torch.randn(5, 3)
    tangents = []
    for block in (nullcontext, lambda: gr.Router(module, {"": gr.Site(SPEC, level="parameters")})(MIXED)):
        with block(), forward_ad.dual_level():
            tangents.append(forward_ad.unpack_dual(module(forward_ad.make_dual(x, tangent))).tangent)
    torch.testing.assert_close(*tangents)
