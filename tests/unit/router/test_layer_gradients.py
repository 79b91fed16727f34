"""Layers whose parameters are routed in one forward and one backward pass."""

import torch
from torch import nn

import gradroute as gr

SPEC = gr.RoutingSpec.one_per_label(4)
LABELS = torch.tensor([0, 2])


def own(spec: gr.RoutingSpec = SPEC, **options: object) -> gr.Site:
    return gr.Site(spec, level="parameters", **options)


def test_no_tensor_of_the_outputs_size_is_kept_beyond_the_layers_own() -> None:
    """What is saved for backward is what the layer itself saves: its input and its parameters."""
    model = nn.Linear(3, 4)
    x = torch.randn(2, 3, requires_grad=True)
    with gr.Router(model, {"": own()})(LABELS):
        output = model(x)
    saved = [tensor for tensor in output.grad_fn.saved_tensors if tensor is not None]
    assert {tensor.data_ptr() for tensor in saved} == {x.data_ptr(), model.weight.data_ptr(), model.bias.data_ptr()}
