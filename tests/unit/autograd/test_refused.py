"""What compiled code of an old torch cannot do is refused in the words of the library, whether or not the graph may end."""

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.tensor import init_device_mesh
from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module
from torch.testing._internal.distributed.fake_pg import FakeStore

import gradroute as gr
from gradroute import _torch_private as private
from gradroute.errors import UsageError

# Dynamo reads .grad of the tensors that a graph takes in, to see whether there is one to guard on.
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
SPECS = {"output": gr.RoutingSpec.one_per_label(4), "input": gr.RoutingSpec.one_per_label(3)}
WORDS = rf"compiled code of torch {torch.__version__.partition('+')[0]}.* cannot mask .* DTensors.*: torch 2\.12 and"


@pytest.fixture
def layer(monkeypatch):
    """Of which this process holds a part, where compiled code is that of an old torch."""
    monkeypatch.setattr(private, "FUNCTIONS_COMPILE", False)
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
    model = nn.Sequential(nn.Linear(3, 4))
    parallelize_module(model, init_device_mesh("cpu", (2,)), {"0": ColwiseParallel()})
    torch.compiler.reset()
    yield model
    torch.compiler.reset()
    dist.destroy_process_group()


@pytest.mark.parametrize("level", ["activations", "parameters"])
@pytest.mark.parametrize("on", ["output", "input"])
def test_dtensors_that_a_mask_meets_in_compiled_code(layer, level, on):
    router = gr.Router(layer, {"0": gr.Site(SPECS[on], level=level, on=on)})
    compiled = torch.compile(layer, backend="eager")
    x, labels = torch.ones(2, 3, requires_grad=True), torch.tensor([0, 1])
    with router(labels), pytest.raises(UsageError, match=WORDS):
        compiled(x)
    with router(labels):  # and out of compiled code it is none
        layer(x)


def test_it_is_the_reason_that_is_given_where_the_graph_may_not_end(layer):
    router = gr.Router(layer, {"0": SPECS["output"]})
    compiled = torch.compile(layer, backend="eager", fullgraph=True)
    with router(torch.tensor([0, 1])), pytest.raises(torch._dynamo.exc.Unsupported, match=WORDS):
        compiled(torch.ones(2, 3))
