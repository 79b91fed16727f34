"""The law of `Isolation(own_steps=True)`: blocks of one tensor learn as separate tensors, each with its own optimizer."""

import copy
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import gradroute as gr
from gradroute.optim import Hold, Isolation
from gradroute.testing import label_tensors, specs
from unit.optim.neurons import OPTIMIZERS, teach

ALL = {
    **OPTIMIZERS,
    "Adafactor": lambda p: torch.optim.Adafactor(p, lr=0.1, weight_decay=0.1),
    "Adagrad lr decay": lambda p: torch.optim.Adagrad(p, lr=0.1, lr_decay=0.5, foreach=True),
    "NAdam foreach": lambda p: torch.optim.NAdam(p, lr=0.1, weight_decay=0.1, foreach=True),
    "RAdam foreach": lambda p: torch.optim.RAdam(p, lr=0.1, foreach=True),
    "Adamax foreach": lambda p: torch.optim.Adamax(p, lr=0.1, foreach=True),
    "ASGD foreach": lambda p: torch.optim.ASGD(p, lr=0.1, t0=1, foreach=True),
    "Rprop foreach": lambda p: torch.optim.Rprop(p, lr=0.1, foreach=True),
    "Adadelta foreach": lambda p: torch.optim.Adadelta(p, lr=0.1, foreach=True),
    "RMSprop foreach": lambda p: torch.optim.RMSprop(p, lr=0.1, momentum=0.9, foreach=True),
}
#: One entry's step depends on the tensor that it is in: units that the same labels teach alike are one tensor.
OF_WHOLE_TENSORS = {"Adafactor", "Muon"}


class Leaves:
    """Each block of each parameter as a leaf tensor, under an optimizer of its own: the oracle."""

    def __init__(self, make: Callable, parameter: Tensor, blocks: list[Tensor], steps: int = 0) -> None:
        self._parameter = parameter
        self._masks = [mask.expand(parameter.shape) for mask in blocks]
        self._leaves = [nn.Parameter(self._cut(parameter.detach(), mask)) for mask in self._masks]
        self._optimizers = [make([leaf]) for leaf in self._leaves]

    def _cut(self, tensor: Tensor, mask: Tensor) -> Tensor:
        rows, columns = (mask.flatten(1).any(1), mask.flatten(1).any(0)) if mask.ndim > 1 else (mask, None)
        return tensor[rows].clone() if columns is None else tensor[rows][:, columns].clone()

    def step(self, gradient: Tensor, is_open: Tensor) -> None:
        """A step of the blocks that are open."""
        for leaf, mask, optimizer in zip(self._leaves, self._masks, self._optimizers, strict=True):
            inside = is_open.expand(mask.shape)[mask]
            assert inside.all() == inside.any()
            if inside.all():
                leaf.grad = self._cut(gradient, mask)
                optimizer.step()

    def check(self) -> None:
        for leaf, mask in zip(self._leaves, self._masks, strict=True):
            torch.testing.assert_close(self._cut(self._parameter.detach(), mask), leaf.detach(), rtol=2e-5, atol=1e-6)


def blocks_along(dim: int, ndim: int, spec: gr.RoutingSpec, *, single: bool) -> list[Tensor]:
    """Masks over units: each unit, or the units that have the same weight for each label."""
    alike: dict[object, list[int]] = {}
    for unit in range(spec.width):
        alike.setdefault(unit if single else tuple(spec.table[:, unit].tolist()), []).append(unit)
    masks = []
    for units in alike.values():
        mask = torch.zeros(spec.width, dtype=torch.bool)
        mask[units] = True
        masks.append(mask.view([-1 if d == dim else 1 for d in range(ndim)]))
    return masks


@given(st.sampled_from(sorted(ALL)), specs(max_width=5, max_labels=3), st.data())
@settings(max_examples=80, deadline=None)
def test_units_learn_as_tensors_of_their_own_under_optimizers_of_their_own(name, spec, data) -> None:
    """Rows, biases and columns, over drawn batches, some of them after a checkpoint was loaded."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, spec.width), nn.Tanh(), nn.Linear(spec.width, 2))
    sites = {"0": gr.Site(spec, level="parameters"), "2": gr.Site(spec, on="input", level="parameters")}
    router = gr.Router(model, sites)
    held = [model[0].weight, model[2].weight] + ([model[0].bias] if name != "Muon" else [])
    optimizer = ALL[name](held)
    Isolation(router, optimizer, own_steps=True)
    oracles = [
        Leaves(ALL[name], p, blocks_along(dim, p.ndim, spec, single=name not in OF_WHOLE_TENSORS))
        for p, dim in zip(held, (0, 1, 0), strict=False)
    ]
    for _ in range(data.draw(st.integers(1, 5))):
        if data.draw(st.booleans()):
            optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        labels = data.draw(label_tensors(spec, (2,), data.draw(st.sampled_from(["integer", "multi-hot"]))))
        teach(router, labels)
        is_open = spec.mask(labels).ne(0).any(0)
        before = [p.detach().clone() for p in held]
        for p in held:
            p.grad = torch.randn_like(p)
        gradients = [p.grad for p in held]
        optimizer.step()
        for p, oracle, gradient, dim, old in zip(held, oracles, gradients, (0, 1, 0), before, strict=False):
            cells = is_open.view([-1 if d == dim else 1 for d in range(p.ndim)])
            oracle.step(gradient, cells)
            assert p.grad is gradient
            closed = ~cells.expand(p.shape)
            assert torch.equal(p[closed], old[closed])
            oracle.check()


@given(st.sampled_from(["AdamW", "Adam fused", "SGD momentum", "NAdam"]), specs(hard=True, max_width=4), st.data())
@settings(max_examples=40, deadline=None)
def test_entries_of_routed_rows_and_columns_learn_as_single_tensors(name, spec, data) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, spec.width), nn.Linear(spec.width, spec.width, bias=False))
    router = gr.Router(
        model,
        {
            "[1]": gr.Site(spec, level="parameters"),
            "1": gr.Site(spec, on="input", level="parameters"),
        },
    )
    weight = model[1].weight
    optimizer = ALL[name]([weight])
    Isolation(router, optimizer, own_steps=True)
    cells = torch.eye(spec.width**2, dtype=torch.bool).view(-1, spec.width, spec.width)
    oracle = Leaves(ALL[name], weight, list(cells))
    for _ in range(data.draw(st.integers(1, 4))):
        labels = data.draw(label_tensors(spec, (2,), "integer"))
        teach(router, labels)
        is_open = spec.mask(labels).ne(0).any(0)
        weight.grad = gradient = torch.randn_like(weight)
        optimizer.step()
        oracle.step(gradient, is_open[:, None] & is_open)
        oracle.check()


@pytest.mark.parametrize("first", ["hold", "isolation"])
@given(specs(hard=True, max_width=5), st.data())
@settings(max_examples=30, deadline=None)
def test_beside_a_hold_both_keep_still_whichever_came_first(first, spec, data) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(3, spec.width)
    router, optimizer = gr.Router(layer, {"": spec}), OPTIMIZERS["AdamW"](list(layer.parameters()))
    rows = data.draw(st.lists(st.integers(0, spec.width - 1), max_size=3))
    if first == "isolation":
        Isolation(router, optimizer, own_steps=True)
    Hold(optimizer, {layer.weight: rows})
    if first == "hold":
        Isolation(router, optimizer, own_steps=True)
    still = torch.zeros(spec.width, dtype=torch.bool)
    still[rows] = True
    for _ in range(data.draw(st.integers(1, 3))):
        labels = data.draw(label_tensors(spec, (2,), "integer"))
        optimizer.zero_grad()
        with router(labels):
            layer(torch.randn(2, 3)).square().sum().backward()
        before = layer.weight.detach().clone()
        average = optimizer.state[layer.weight].get("exp_avg", torch.zeros_like(before)).clone()
        optimizer.step()
        untaught = ~spec.mask(labels).ne(0).any(0)
        assert torch.equal(layer.weight[still | untaught], before[still | untaught])
        if "exp_avg" in optimizer.state[layer.weight]:
            assert torch.equal(optimizer.state[layer.weight]["exp_avg"][still], average[still])
        assert (layer.weight != before).any(1)[~still & ~untaught].all()
