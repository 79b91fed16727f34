"""What a site's hooks edit, and in which order they and others run."""

import copy

import pytest
import torch
from torch import nn

import gradroute as gr
from unit.router.small import SPEC, bias_gradient, mlp

WHOLE = gr.RoutingSpec(dict.fromkeys(range(3), 0), 1)


class TestOrder:
    def test_a_hook_that_was_there_first_sees_the_routed_output_and_cannot_go_around_it(self):
        model = mlp()
        penalty = []
        model[0].register_forward_hook(lambda module, args, output: penalty.append(output.abs().sum()))
        router = gr.Router(model, {"0": SPEC})
        with router(torch.tensor([1, 1])):
            model(torch.ones(2, 2))
        penalty[0].backward()
        assert model[0].bias.grad.ne(0).tolist() == [False, True, False]


class Keeps(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(3))

    def forward(self, x):
        self.given, self.made = x, x * self.scale
        return self.made


@pytest.mark.parametrize("on", ["output", "input"])
@pytest.mark.parametrize("level", ["activations", "parameters"])
def test_a_routed_tensor_is_not_copied(level, on):
    model, x = Keeps(), torch.ones(2, 3, requires_grad=True)
    with gr.Router(model, {"": gr.Site(SPEC, on=on, level=level)})(torch.tensor([0, 1])):
        y = model(x)
    assert model.given.data_ptr() == x.data_ptr()
    assert y.data_ptr() == model.made.data_ptr()


class TestOn:
    def test_input_stops_what_leaves_towards_upstream_and_the_module_itself_learns_whole(self):
        model = mlp()
        plain = bias_gradient(model), model[1].weight.grad.clone()
        router = gr.Router(model, {"1": gr.Site(SPEC, on="input")})
        with router(torch.tensor([1, 1])):
            routed = bias_gradient(model)
        assert torch.equal(routed, plain[0] * torch.tensor([0, 1, 0]))
        assert torch.equal(model[1].weight.grad, plain[1])


class TestTraces:
    def test_a_new_router_takes_what_a_stray_copy_carries_off_without_a_trace(self):
        model = mlp()
        gr.Router(model, {"0": SPEC, "1": gr.Site(SPEC, on="input"), "2": gr.Site(WHOLE, level="parameters")})
        stray = copy.deepcopy(model)
        gr.Router(stray, {"0": SPEC}).remove()
        plain = mlp()
        for module, without in zip(stray.modules(), plain.modules(), strict=True):
            assert {name: value for name, value in vars(module).items() if "hooks" in name or name == "forward"} == {
                name: value for name, value in vars(without).items() if "hooks" in name
            }
