"""Sites that could not be routed as they are meant are refused when the router is attached."""

import pytest
import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

import gradroute as gr
from gradroute.errors import SiteError
from unit.router.small import LABELS, SPEC


def test_a_projection_that_attention_never_calls_is_refused():
    with pytest.raises(SiteError, match=r"'out_proj' is never called.*Put the site on '' with index=0"):
        gr.Router(nn.MultiheadAttention(4, 2), {"out_proj": SPEC})


@pytest.mark.filterwarnings("ignore:.torch.jit:FutureWarning", "ignore:.torch.jit:DeprecationWarning")
@pytest.mark.parametrize("name", ["", "0", "0.1"])
def test_a_site_that_torch_jit_has_compiled_is_refused(name):
    model = nn.Sequential(torch.jit.script(nn.Sequential(nn.ReLU(), nn.Linear(2, 3))))
    if name == "":
        model = torch.jit.script(nn.Linear(2, 3))
    with pytest.raises(SiteError, match="is compiled by torch.jit.script or torch.jit.trace"):
        gr.Router(model, {name: SPEC})


@pytest.mark.parametrize("first", ["the router", "the layer's division"])
@pytest.mark.usefixtures("one_of_two_processes")
def test_a_spec_for_the_part_of_a_layer_that_a_process_holds_is_refused(first):
    """It fits the plain part that `RowwiseParallel` is given, and would mean other units in each process."""
    mesh = init_device_mesh("cpu", (2,))
    model = nn.Sequential(nn.ReLU(), nn.Linear(6, 2, bias=False))

    def divide():
        model[1].weight = nn.Parameter(distribute_tensor(model[1].weight.detach(), mesh, [Shard(1)]))

    def attach(spec):
        return gr.Router(model, {"1": gr.Site(spec, on="input")})

    refused = pytest.raises(SiteError, match="the spec has 3 units, and the layer has 6, of which this process holds 3")
    if first == "the router":
        router, whole = attach(SPEC), attach(gr.RoutingSpec.one_per_label(6))
        with router(LABELS):
            pass
        divide()
        for _ in range(2):
            with refused, router(LABELS):
                pass
            assert router.labels is None
        with whole(LABELS):
            pass
    else:
        divide()
        with refused:
            attach(SPEC)
        attach(gr.RoutingSpec.one_per_label(6))
