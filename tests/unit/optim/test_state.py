"""What an optimizer keeps for each unit: what it would hold without gradients, and where units share it, a refusal."""

import pytest
import torch
from torch import nn

import gradroute as gr
from gradroute.errors import UsageError
from gradroute.optim import Isolation
from unit.optim.neurons import OPTIMIZERS, RETAIN, SPEC, STEPS, WRITER, Neurons, gradients_everywhere, teach, tensors


class TestOptimizers:
    def test_of_sparse_gradients(self):
        model = nn.Embedding(5, SPEC.width, sparse=True)
        router = gr.Router(model, {"": SPEC})
        optimizer = torch.optim.SparseAdam(model.parameters(), lr=0.1)
        Isolation(router, optimizer)
        for labels in STEPS:
            optimizer.zero_grad()
            before = tensors(model, optimizer)
            teach(router, labels)
            rows = torch.tensor([[0, 2]])
            values = torch.randn(2, SPEC.width)
            model.weight.grad = torch.sparse_coo_tensor(rows, values, model.weight.shape, check_invariants=False)
            optimizer.step()
            untaught = SPEC.mask(labels).sum(0) == 0
            for key, value in tensors(model, optimizer).items():
                expected = before.get(key, torch.zeros_like(value))
                assert torch.equal(value[:, untaught], expected[:, untaught]), key
            if not untaught.all():
                assert not torch.equal(model.weight, before["weight"])

    def test_create_state_by_the_options_of_each_group(self):
        model = Neurons()
        router = gr.Router(model, WRITER)
        rates = {model.writer.weight: 0.5, model.writer.bias: 0.25}
        optimizer = torch.optim.Rprop([{"params": [parameter], "lr": lr} for parameter, lr in rates.items()])
        Isolation(router, optimizer)
        gradients_everywhere(model)
        teach(router, RETAIN)
        optimizer.step()
        for parameter, lr in rates.items():
            assert optimizer.state[parameter]["step_size"][[3, 5]].eq(lr).all()

    @pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.bfloat16])
    def test_with_state_of_few_bits(self, dtype):
        class Coarse(torch.optim.Optimizer):
            """Momentum in units of 1/8, without scales that entries share."""

            def __init__(self, params, lr=0.5, weight_decay=0.0):
                super().__init__(params, {"lr": lr, "weight_decay": weight_decay})

            @torch.no_grad()
            def step(self):
                for group in self.param_groups:
                    for p in group["params"]:
                        state = self.state[p]
                        if "buffer" not in state:
                            state["buffer"] = torch.full_like(p, 8, dtype=dtype)
                        grad = p.grad + group["weight_decay"] * p
                        state["buffer"] = (state["buffer"].float() * 0.5 + grad.abs() * 8).clamp(0, 100).to(dtype)
                        p.sub_(state["buffer"].to(p.dtype) / 8, alpha=group["lr"])

        model = Neurons()
        router = gr.Router(model, WRITER)
        optimizer = Coarse(model.parameters(), weight_decay=0.1)
        Isolation(router, optimizer)
        gradients_everywhere(model)
        teach(router, RETAIN)
        optimizer.step()
        before = tensors(model, optimizer)
        assert before["writer.weight: buffer"][[3, 5]].float().eq(4).all()  # the first half of 8: no gradient
        gradients_everywhere(model)
        teach(router, RETAIN)
        optimizer.step()
        after = tensors(model, optimizer)
        assert before["writer.weight: buffer"].dtype == dtype
        for key in ("writer.weight", "writer.bias: buffer", "writer.weight: buffer"):
            assert torch.equal(after[key][[3, 5]], before[key][[3, 5]])
            assert not torch.equal(after[key][:3], before[key][:3])

    @pytest.mark.parametrize(
        ("make", "message"),
        [
            (torch.optim.LBFGS, "LBFGS cannot be isolated: .*history of whole gradients.*such as AdamW"),
            (torch.optim.Adafactor, "Adafactor cannot be isolated: .*rows and columns"),
            (lambda p: torch.optim.SGD(p, lr=0.1, differentiable=True), "differentiable=True"),
            (lambda p: None, "must be a torch.optim.Optimizer; got NoneType"),
        ],
    )
    def test_that_cannot_be_isolated_are_refused_at_once(self, make, message):
        model = Neurons()
        with pytest.raises(UsageError, match=message):
            Isolation(gr.Router(model, WRITER), make(model.parameters()))

    def test_that_hide_another_optimizer_are_refused_for_the_inner_one(self):
        class Outer(torch.optim.Optimizer):
            """As `ZeroRedundancyOptimizer` does."""

            def __init__(self, inner):
                super().__init__(inner.param_groups, inner.defaults)
                self.inner = inner

        model = Neurons()
        router = gr.Router(model, WRITER)
        outer = Outer(OPTIMIZERS["AdamW"](model.parameters()))
        with pytest.raises(
            UsageError, match=r"Outer leaves its steps to another optimizer.*use the inner optimizer, \.inner"
        ):
            Isolation(router, outer)
        Isolation(router, outer.inner)

    def test_adafactor_of_biases_alone_is_like_any_other(self):
        model = Neurons()
        Isolation(gr.Router(model, WRITER), torch.optim.Adafactor([model.writer.bias]))

    @pytest.mark.parametrize(
        ("value", "message"),
        [
            (torch.ones(7, 1), r"'scale' of shape \(7, 1\) for a parameter of \(7, 4\)"),
            ([torch.ones(7, 4)], "'scale', a list"),
            (object(), "'scale', a object"),
            (torch.ones(7, 4).as_subclass(type("Blocks", (torch.Tensor,), {})), "the class Blocks cannot be isolated"),
        ],
    )
    def test_whose_state_units_may_share_are_refused_when_it_shows(self, value, message):
        model = Neurons()
        router = gr.Router(model, WRITER)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        Isolation(router, optimizer)
        optimizer.state[model.writer.weight]["scale"] = value
        gradients_everywhere(model)
        teach(router, RETAIN)
        with pytest.raises(UsageError, match=message):
            optimizer.step()

    def test_that_cannot_be_made_a_second_time_are_refused_in_their_first_step_only(self):
        class Particular(torch.optim.Adam):
            def __init__(self, model):
                super().__init__(model.parameters(), lr=0.1)

        model = Neurons()
        router = gr.Router(model, WRITER)
        optimizer = Particular(model)
        isolation = Isolation(router, optimizer)
        gradients_everywhere(model)
        teach(router, RETAIN)
        before = tensors(model, optimizer)
        with pytest.raises(UsageError, match="a second Particular.*Take the optimizer's first step before"):
            optimizer.step()
        assert torch.equal(model.writer.weight[[3, 5]], before["writer.weight"][[3, 5]])
        isolation.remove()
        optimizer.step()
        optimizer.zero_grad()
        Isolation(router, optimizer)
        gradients_everywhere(model)
        before = tensors(model, optimizer)
        teach(router, RETAIN)
        optimizer.step()
        assert torch.equal(
            tensors(model, optimizer)["writer.bias: exp_avg"][[3, 5]], before["writer.bias: exp_avg"][[3, 5]]
        )
