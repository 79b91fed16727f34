"""What an optimizer keeps of parameters that changed their size."""

import copy

import pytest
import torch
from torch import nn

import gradroute as gr
from gradroute.errors import UsageError
from gradroute.surgery import add_units_, contract
from surgery_cases import ROWS, agree, mlp, spec

OPTIMIZERS = {
    "adamw": lambda parameters: torch.optim.AdamW(parameters, lr=0.1, amsgrad=True),
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9, weight_decay=0.1),
    "rmsprop": lambda parameters: torch.optim.RMSprop(parameters, lr=0.01, centered=True),
}


def train(model, optimizer, x=ROWS):
    optimizer.zero_grad()
    model(x).square().sum().backward()
    optimizer.step()


class TestOptimizer:
    @pytest.mark.parametrize("kind", OPTIMIZERS)
    def test_a_step_after_expanding_is_that_of_the_original(self, kind):
        model = mlp()
        optimizer = OPTIMIZERS[kind](model.parameters())
        train(model, optimizer)
        plain, plain_optimizer = copy.deepcopy((model, optimizer))
        new = add_units_(model[0], model[4], 3, between=model[1:4], optimizer=optimizer)
        kept = [value for value in optimizer.state[model[0].weight].values() if torch.is_tensor(value) and value.ndim]
        assert kept
        assert all(value[: new.start].any() and not value[new].any() for value in kept)
        train(model, optimizer)
        train(plain, plain_optimizer)
        agree(model[0].weight[: new.start], plain[0].weight)
        agree(model[4].weight[:, : new.start], plain[4].weight)
        assert {id(p) for group in optimizer.param_groups for p in group["params"]} == {
            id(p) for p in model.parameters()
        }
        assert all(
            value.shape == parameter.shape
            for parameter, state in optimizer.state.items()
            for value in state.values()
            if isinstance(value, torch.Tensor) and value.ndim
        )

    @pytest.mark.parametrize("kind", OPTIMIZERS)
    def test_a_step_after_contracting_is_that_of_the_ablated_original(self, kind):
        model = mlp()
        optimizer = OPTIMIZERS[kind](model.parameters())
        train(model, optimizer)
        router = gr.Router(model, {"2": spec(8)})
        contracted = contract(router, "forget", example=ROWS, optimizer=optimizer)
        train(contracted.model, contracted.optimizer)
        with router.ablated("forget"):
            train(model, optimizer)
        agree(contracted.model[0].weight, model[0].weight[:6])
        agree(contracted.model[4].weight, model[4].weight[:, :6])
        agree(contracted.model[6].bias, model[6].bias)
        assert contracted.model[0].weight.shape == (6, 5)

    def test_the_state_of_new_entries_is_what_the_optimizer_makes_of_zero_gradients(self):
        model = mlp()
        optimizer = torch.optim.Rprop(model.parameters(), lr=0.3)
        train(model, optimizer)
        new = add_units_(model[0], model[4], 3, between=model[1:4], optimizer=optimizer)
        steps = optimizer.state[model[4].weight]["step_size"]
        assert torch.equal(steps[:, new], torch.full((8, 3), 0.3)), "zeros would never move"

    def test_an_optimizer_that_nobody_named_raises_and_trains_nothing_else(self):
        model = mlp()
        optimizer = torch.optim.AdamW(model.parameters())
        train(model, optimizer)
        add_units_(model[0], model[4], 3, between=model[1:4])
        with pytest.raises(RuntimeError, match="size of tensor"):
            train(model, optimizer)

    def test_states_of_another_shape_and_foreign_parameters_are_refused(self):
        model = mlp()
        optimizer = torch.optim.Adafactor(model.parameters())
        train(model, optimizer)
        before = repr(model)
        with pytest.raises(UsageError, match="Adafactor keeps state in another shape"):
            add_units_(model[0], model[4], 1, optimizer=optimizer)
        assert repr(model) == before
        with pytest.raises(UsageError, match="LBFGS keeps state in another shape"):
            add_units_(model[0], model[4], 1, optimizer=torch.optim.LBFGS(model.parameters()))
        both = torch.optim.SGD([*model.parameters(), nn.Parameter(torch.ones(1))], lr=0.1)
        with pytest.raises(UsageError, match="parameters that are not the model's"):
            contract(gr.Router(model, {"2": spec(8)}), "forget", example=ROWS, optimizer=both)
