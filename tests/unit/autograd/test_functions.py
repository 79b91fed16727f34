"""`RouteMask`: identity forward, gradient times mask backward."""

import pytest
import torch

import gradroute as gr
from gradroute.errors import RoutingError


class TestRouteMask:
    def test_gradient_is_zero_off_the_mask_even_of_inf_and_nan(self):
        x = torch.zeros(2, 3, requires_grad=True)
        upstream = torch.tensor([[float("inf"), float("nan"), 2.0]]).expand(2, 3)
        gr.RouteMask.apply(x, torch.tensor([0.0, 0.0, 0.5])).backward(upstream)
        assert x.grad.tolist() == [[0, 0, 1]] * 2

    def test_takes_bool_masks(self):
        x = torch.zeros(2, 3, requires_grad=True)
        gr.RouteMask.apply(x, torch.tensor([[True], [False]])).sum().backward()
        assert x.grad.tolist() == [[1] * 3, [0] * 3]

    @pytest.mark.parametrize("shape", [(2,), (3, 3), (4, 2, 3)])
    def test_a_mask_that_does_not_broadcast_to_x_is_refused(self, shape):
        with pytest.raises(RoutingError, match=r"does not broadcast to x's shape \(2, 3\)"):
            gr.RouteMask.apply(torch.zeros(2, 3), torch.ones(shape))
