"""Work in place on a site's tensor that its caller holds is refused."""

import pytest
import torch
from torch import nn

import gradroute as gr
from gradroute.errors import SiteError


@pytest.mark.parametrize("grad", [False, True])
def test_a_module_that_works_in_place_on_an_input_with_silent_units_is_refused_without_gradients_too(grad):
    """Its caller would go on with units that are on."""
    quiet = gr.RoutingSpec.one_per_label(3, silent="others")
    model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(inplace=True))
    router = gr.Router(model, {"1": gr.Site(quiet, on="input")})
    with torch.set_grad_enabled(grad), router(torch.tensor([0])), pytest.raises(SiteError, match="works in place"):
        model(torch.randn(1, 2))
