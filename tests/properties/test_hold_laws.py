"""Laws of `Hold`: what is held is bitwise still, whatever happens to the optimizer, and the rest learns as without it."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import gradroute as gr
from gradroute.optim import Hold, Isolation
from gradroute.testing import label_tensors, specs
from unit.optim.neurons import OPTIMIZERS

ALL = {
    **OPTIMIZERS,
    "Adafactor": lambda p: torch.optim.Adafactor(p, lr=0.1, weight_decay=0.1),
    "LBFGS": lambda p: torch.optim.LBFGS(p, lr=0.1, max_iter=3, history_size=2),
    "LBFGS with a line search": lambda p: torch.optim.LBFGS(p, max_iter=3, line_search_fn="strong_wolfe"),
}
#: One entry's step depends on what other entries are, so that without a hold, with which they move, it is another.
MIXES_ENTRIES = {"Adafactor", "Muon", "LBFGS", "LBFGS with a line search"}
SHAPE = (5, 3)


@st.composite
def held_parts(draw) -> tuple[object, Tensor]:
    """Rows or a mask as they are given to `Hold`, and the entries that they name."""
    mask = torch.zeros(SHAPE, dtype=torch.bool)
    match draw(st.sampled_from(["mask", "rows", "slice", "int", "mask of rows"])):
        case "mask":
            mask = torch.tensor(draw(st.lists(st.booleans(), min_size=15, max_size=15))).view(SHAPE)
            return mask.clone(), mask
        case "rows":
            given = draw(st.lists(st.integers(0, 4), max_size=5))
        case "slice":
            given = slice(draw(st.integers(0, 4)), None)
        case "int":
            given = draw(st.integers(0, 4))
        case "mask of rows":
            given = torch.tensor(draw(st.lists(st.booleans(), min_size=5, max_size=5)))
    mask[given] = True
    return given, mask


class Whole(nn.Module):
    """Two matrices of one shape, one of which is used twice, as tied weights are."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(SHAPE))
        self.tied = self.weight
        self.free = nn.Parameter(torch.randn(SHAPE))

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x @ self.weight.T) @ self.tied + torch.tanh(x @ self.free.T) @ self.free


def state_of(optimizer: torch.optim.Optimizer, parameter: Tensor) -> dict[str, Tensor]:
    """The state with an entry for each of a parameter's: copies."""
    tensors = {key: value for key, value in optimizer.state[parameter].items() if torch.is_tensor(value)}
    return {key: value.clone() for key, value in tensors.items() if value.shape == parameter.shape}


STEPS = st.lists(st.sampled_from(["step", "clipped", "closure", "resumed", "no gradient"]), min_size=1, max_size=5)


@given(st.sampled_from(sorted(ALL)), held_parts(), STEPS, st.integers(0, 2))
@settings(max_examples=150, deadline=None)
def test_held_entries_are_still_and_the_others_learn_as_if_those_had_no_gradient(name, part, steps, late) -> None:
    """The oracle: the same optimizer without a hold, given gradients that are 0 where the entries are held."""
    torch.manual_seed(0)
    given, mask = part
    model = Whole()
    optimizer = ALL[name](list(model.parameters()))
    steps = ["closure" for _ in steps] if "LBFGS" in name else steps
    for _ in range(0 if "LBFGS" in name else late):
        model(torch.randn(4, 3)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    twin, its = copy.deepcopy((model, optimizer))
    Hold(optimizer, {model.weight: given})
    for kind in steps:
        x = torch.randn(4, 3)

        def backward(x: Tensor = x) -> Tensor:
            optimizer.zero_grad()
            loss = model(x).square().sum()
            loss.backward()
            return loss

        if kind == "resumed":
            optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        weight, state = model.weight.detach().clone(), state_of(optimizer, model.weight)
        if kind == "closure":
            optimizer.step(backward)
        else:
            if kind == "no gradient":
                optimizer.zero_grad()
            else:
                backward()
            if kind == "clipped":
                nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            optimizer.step()
        assert torch.equal(model.weight[mask], weight[mask])
        for key, value in state_of(optimizer, model.weight).items():
            if key in state:
                assert torch.equal(value[mask], state[key][mask]), key
        if name not in MIXES_ENTRIES:
            gradient = None if model.weight.grad is None else model.weight.grad.masked_fill(mask, 0)
            assert gradient is None or torch.equal(gradient, model.weight.grad)
            twin.weight.grad = gradient
            twin.free.grad = None if model.free.grad is None else model.free.grad.clone()
            its.step()
            assert torch.equal(model.weight[~mask], twin.weight[~mask])
            assert torch.equal(model.free, twin.free)
            for key, value in state_of(its, twin.weight).items():
                assert torch.equal(state_of(optimizer, model.weight)[key][~mask], value[~mask]), key


@given(held_parts())
@settings(max_examples=40, deadline=None)
def test_a_held_gradient_does_not_count_in_the_norm_that_clips(part) -> None:
    given, mask = part
    parameter = nn.Parameter(torch.randn(SHAPE))
    gradient = torch.randn(SHAPE)
    optimizer = torch.optim.SGD([parameter], lr=0.1)  # a hold lives as long as its optimizer
    Hold(optimizer, {parameter: given})
    (parameter * gradient).sum().backward()
    norm = nn.utils.clip_grad_norm_([parameter], 0.1)
    torch.testing.assert_close(norm, gradient[~mask].norm())


@pytest.mark.parametrize("first", ["hold", "isolation"])
@given(specs(hard=True, max_width=6), st.data())
@settings(max_examples=40, deadline=None)
def test_beside_an_isolation_both_hold_whichever_came_first(first, spec, data) -> None:
    labels = [data.draw(label_tensors(spec, (3,), "integer")) for _ in range(data.draw(st.integers(1, 3)))]
    rows = data.draw(st.lists(st.integers(0, spec.width - 1), max_size=3))
    name = data.draw(st.sampled_from(sorted({"AdamW", "SGD momentum", "Adam fused", "NAdam"})))
    layer = nn.Linear(2, spec.width)
    router, optimizer = gr.Router(layer, {"": spec}), OPTIMIZERS[name](list(layer.parameters()))
    if first == "isolation":
        Isolation(router, optimizer)
    Hold(optimizer, {layer.weight: rows, layer.bias: rows})
    if first == "hold":
        Isolation(router, optimizer)
    still = torch.zeros(spec.width, dtype=torch.bool)
    still[rows] = True
    for batch in labels:
        optimizer.zero_grad()
        with router(batch):
            layer(torch.randn(3, 2)).square().sum().backward()
        before, state = layer.weight.detach().clone(), state_of(optimizer, layer.weight)
        optimizer.step()
        untaught = ~spec.mask(batch).ne(0).any(0)
        assert torch.equal(layer.weight[still | untaught], before[still | untaught])
        for key, value in state_of(optimizer, layer.weight).items():
            if key in state:
                assert torch.equal(value[still | untaught], state[key][still | untaught])
        assert (layer.weight != before).any(1)[~still & ~untaught].all()
