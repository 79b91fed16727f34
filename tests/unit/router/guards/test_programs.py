"""A program that would keep the labels of now for ever is refused."""

import warnings

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

import gradroute as gr
from gradroute.errors import UsageError
from gradroute.optim import Isolation
from unit.router.small import LABELS, SPEC, mlp


class TestCudaGraph:
    """There is no GPU in most test runs, so that only what is asked of torch is another here."""

    @pytest.fixture
    def capturing(self, monkeypatch):
        monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
        monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)

    @pytest.mark.usefixtures("capturing")
    def test_of_a_pass_with_labels_is_refused_and_of_one_without_is_not(self):
        model = mlp().eval()
        router = gr.Router(model, {"0": SPEC})
        model(torch.ones(2, 2))
        with router.ablated(1):
            model(torch.ones(2, 2))
        with router(LABELS), pytest.raises(UsageError, match="cannot be part of a CUDA graph: each replay"):
            model(torch.ones(2, 2))

    def test_of_an_isolated_step_is_refused(self, request):
        model = mlp()
        router = gr.Router(model, {"0": SPEC})
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        isolation = Isolation(router, optimizer)
        with router(LABELS):
            model(torch.ones(2, 2)).sum().backward()
        before = model[0].weight.detach().clone()
        request.getfixturevalue("capturing")
        with pytest.raises(UsageError, match="a step of an isolated optimizer cannot be part of a CUDA graph"):
            optimizer.step()
        assert torch.equal(model[0].weight, before)
        isolation.remove()
        optimizer.step()


def traced(model, x):
    return torch.jit.trace(model, (x,), check_trace=False)


def recorded(model, x):
    """As an ahead-of-time compiler without Dynamo does: forward and backward."""

    def step(bias):
        return torch.autograd.grad(torch.func.functional_call(model, {"0.bias": bias}, (x,)).sum(), bias)

    return make_fx(step)(model[0].bias.detach().requires_grad_())


@pytest.mark.filterwarnings("ignore:.torch.jit:FutureWarning", "ignore:.torch.jit:DeprecationWarning")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("record", [traced, recorded])
@pytest.mark.parametrize("level", ["activations", "parameters"])
class TestTrace:
    def test_of_a_pass_that_learns_by_labels_is_refused(self, record, level):
        """Its labels would be constants of the program, and mask whatever batch comes."""
        model = mlp()
        router = gr.Router(model, {"0": gr.Site(SPEC, level=level)})
        with router(LABELS), pytest.raises(UsageError, match="does not know this block"):
            record(model, torch.ones(2, 2))

    def test_outside_of_a_block_is_not(self, record, level):
        model = mlp().eval()
        router = gr.Router(model, {"0": gr.Site(SPEC, level=level)})
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", gr.UnroutedWarning)
            record(model, torch.ones(2, 2))
        if record is traced:
            with router(LABELS), torch.no_grad():
                assert torch.equal(record(model, torch.ones(2, 2))(torch.ones(2, 2)), model(torch.ones(2, 2)))
