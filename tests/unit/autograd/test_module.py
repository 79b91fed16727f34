"""`RouteGradient`: `route` as a layer."""

import torch

import gradroute as gr

SPEC = gr.RoutingSpec.one_per_label(10)


class TestRouteGradient:
    def test_is_route_as_a_layer_without_state(self):
        layer = gr.RouteGradient(SPEC, dim=1)
        x = torch.randn(4, 10, 2, requires_grad=True)
        y = layer(x, torch.arange(4))
        assert torch.equal(y, x)
        y.sum().backward()
        assert torch.equal(x.grad, torch.eye(10)[:4, :, None].expand(4, 10, 2))
        assert not layer.state_dict()

    def test_repr_shows_the_spec(self):
        assert repr(gr.RouteGradient(SPEC)) == "RouteGradient(RoutingSpec.one_per_label(10), dim=-1)"
