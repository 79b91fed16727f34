"""What a site's hooks edit, and in which order they and others run."""

import copy

import pytest
import torch
from torch import nn

import gradroute as gr
from gradroute.autograd._functional import SMALL
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


class TestSmallTensors:
    """Their mask is looked up in the forward pass."""

    @staticmethod
    def routed(model, router, labels, x):
        """The nodes that route the outputs of the first two layers, and the bias gradients."""
        seen = []
        handles = [model[n].register_forward_hook(lambda module, args, y: seen.append(y.grad_fn)) for n in (0, 1)]
        with router(labels):
            model(x).sum().backward()
        for handle in handles:
            handle.remove()
        return seen

    def test_all_sites_of_a_block_share_one_look_up_and_each_block_makes_its_own(self):
        model = mlp()
        router = gr.Router(model, {"[01]": SPEC})
        kept = []
        for labels in (torch.tensor([0, 2]), torch.tensor([1, 1])):
            first, second = self.routed(model, router, labels, torch.ones(2, 2))
            assert first.kept[0] is second.kept[0]
            assert torch.equal(first.kept[0], SPEC.mask(labels).bool())
            kept.append(first.kept[0])
        assert kept[0] is not kept[1]

    def test_tensors_of_other_shapes_look_up_their_own(self):
        model = mlp()
        router = gr.Router(model, {"[01]": SPEC})
        labels = torch.tensor([0, 2])
        with router(labels):
            for shape in ((2, 2), (2, 4, 2), (2, 1, 5, 2), (2, 2)):
                model.zero_grad()
                x = torch.ones(shape)
                model(x).sum().backward()
                expected = SPEC.mask(labels).view(2, *[1] * (len(shape) - 2), 3)
                ones = torch.ones(*shape[:-1], 3) * model[2].weight.detach() * expected
                torch.testing.assert_close(model[1].bias.grad, ones.sum(tuple(range(len(shape) - 1))))

    def test_labels_that_do_not_fit_name_the_site(self):
        model = mlp()
        with gr.Router(model, {"1": SPEC})(torch.tensor([0, 2, 1])), pytest.raises(gr.errors.LabelError, match="site '1': labels of shape"):  # fmt: skip
            model(torch.ones(2, 2))

    def test_labels_that_are_written_to_before_backward_raise(self):
        model, labels = mlp(), torch.tensor([0, 2])
        with gr.Router(model, {"[01]": SPEC})(labels):
            loss = model(torch.ones(2, 2)).sum()
            labels.fill_(1)
            with pytest.raises(gr.errors.LabelError, match="changed in place"):
                loss.backward()


@pytest.mark.parametrize("examples", [2, SMALL])
def test_a_graph_that_went_through_backward_is_not_waited_for_though_it_is_kept(examples):
    """A site that is gone around is noticed only while no earlier graph waits for its backward pass."""
    model = mlp()
    router = gr.Router(model, {"0": SPEC})
    labels, x = torch.zeros(examples, dtype=torch.long), torch.ones(examples, 2)
    with router(labels):
        loss = model(x).sum()
        loss.backward(retain_graph=True)
    with pytest.warns(gr.UnroutedWarning, match="got gradients"), router(labels):
        nn.functional.linear(x, model[0].weight, model[0].bias).sum().backward()
    assert loss.grad_fn is not None


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
