"""Work in place on a site's tensor that its caller holds is refused."""

from collections import UserDict
from collections.abc import Mapping
from dataclasses import dataclass

import pytest
import torch
from torch import nn

import gradroute as gr
from gradroute.errors import SiteError
from unit.router.small import LABELS, SPEC


@pytest.mark.parametrize("grad", [False, True])
def test_a_module_that_works_in_place_on_an_input_with_silent_units_is_refused_without_gradients_too(grad):
    """Its caller would go on with units that are on."""
    quiet = gr.RoutingSpec.one_per_label(3, silent="others")
    model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(inplace=True))
    router = gr.Router(model, {"1": gr.Site(quiet, on="input")})
    with torch.set_grad_enabled(grad), router(torch.tensor([0])), pytest.raises(SiteError, match="works in place"):
        model(torch.randn(1, 2))


@dataclass
class Batch:
    x: torch.Tensor
    name: str = "batch"


class Unpacks(nn.Module):
    def forward(self, batch):
        while not isinstance(batch, torch.Tensor):
            if isinstance(batch, Batch):
                batch = batch.x
            else:
                batch = next(iter(batch.values())) if isinstance(batch, Mapping) else batch[0]
        return batch


@pytest.mark.parametrize(
    "pack",
    [lambda x: x, lambda x: (x, 1), lambda x: {"x": [x]}, Batch, lambda x: UserDict(x=x), lambda x: [Batch(x)]],
    ids=["tensor", "tuple", "dict", "dataclass", "another mapping", "nested"],
)
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # Dynamo reads it
def test_what_a_module_hands_on_may_not_be_written_to_whatever_it_came_in(pack, compiled):
    """The caller would have other values, and not their gradients."""
    module = Unpacks()
    h = torch.randn(2, 3, requires_grad=True) * 1
    before = h.detach().clone()
    with gr.Router(module, {"": SPEC})(LABELS):
        y = (torch.compile(module, backend="eager") if compiled else module)(pack(h))
        with pytest.raises(RuntimeError, match="view"):
            y.relu_()
    assert torch.equal(h, before)
