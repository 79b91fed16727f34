"""Views of what is open: a step of them leaves, bit for bit, what a step of the whole leaves there, and nothing else."""

import copy
import itertools

import pytest
import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

import gradroute as gr
from gradroute.optim import Hold, Isolation, _open_views
from gradroute.optim._open_views import ALIGNED, ELEMENTWISE, open_part, step_open
from gradroute.optim._slices import MOST_RUNS, runs_of
from unit.optim.neurons import OPTIMIZERS, teach

SHAPE = 70, 33  # no row of it is aligned
CLOSED = {
    "the last rows": [slice(20, 70)],
    "the first rows": [slice(0, 50)],
    "rows in the middle": [slice(11, 59)],
    "two pieces": [slice(0, 21), slice(43, 64)],
    "overlapping": [slice(10, 40), slice(5, 30), slice(40, 50)],
}
BY_VIEWS = sorted(set(OPTIMIZERS) - {"Muon", "SGD"})


def stepped(name, shape=SHAPE, dtype=torch.float32, steps=2):
    """A parameter with a gradient, and its optimizer, that has taken some steps."""
    parameter = nn.Parameter(torch.randn(shape, dtype=dtype))
    optimizer = OPTIMIZERS[name]([parameter])
    for _ in range(steps):
        parameter.grad = torch.randn_like(parameter)
        optimizer.step()
    parameter.grad = torch.randn_like(parameter)
    return parameter, optimizer


def of_entries(optimizer, parameter):
    state = optimizer.state[parameter].items()
    return [parameter.detach(), *(value for _, value in state if torch.is_tensor(value) and value.shape == SHAPE)]


def counts(optimizer, parameter):
    state = optimizer.state[parameter].items()
    return {key: value for key, value in state if not (torch.is_tensor(value) and value.shape == SHAPE)}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("closed", CLOSED.values(), ids=CLOSED)
@pytest.mark.parametrize("name", BY_VIEWS)
def test_open_rows_and_counts_are_as_after_a_whole_step_and_closed_rows_as_before(name, closed, dtype):
    parameter, optimizer = stepped(name, dtype=dtype)
    bare, its = copy.deepcopy((parameter, optimizer))
    bare.grad = parameter.grad.clone()
    before = [tensor.clone() for tensor in of_entries(optimizer, parameter)]
    version = parameter._version
    for _ in range(3):
        part = open_part(optimizer, parameter, parameter.grad, closed)
        assert part is not None
        assert sum(seen.stop - seen.start for seen in part.seen) < parameter.numel()
        step_open(optimizer, [part])
        its.step()
    is_closed = torch.zeros(SHAPE[0], dtype=torch.bool)
    for rows in closed:
        is_closed[rows] = True
    for mine, old, whole in zip(of_entries(optimizer, parameter), before, of_entries(its, bare), strict=True):
        assert torch.equal(mine[is_closed], old[is_closed])
        assert torch.equal(mine[~is_closed], whole[~is_closed])
    assert counts(optimizer, parameter) == counts(its, bare)
    assert parameter._version > version, "who saved it for backward must hear of it"


def test_the_table_of_optimizers_is_tried_here_as_a_whole():
    assert {type(OPTIMIZERS[name]([nn.Parameter(torch.ones(1))])) for name in BY_VIEWS} == set(ELEMENTWISE)


class Heavier(torch.optim.AdamW):
    """A class of somebody else's, of which nothing is known."""


class TestIsNoWayFor:
    def refused(self, parameter, optimizer, closed=(slice(0, 50),), gradient=True):
        return open_part(optimizer, parameter, parameter.grad if gradient else None, closed) is None

    def test_a_parameter_with_little_that_is_closed(self):
        assert self.refused(*stepped("AdamW"), closed=[slice(0, 5)])
        assert self.refused(*stepped("AdamW"), closed=[])

    def test_a_parameter_that_is_closed_as_a_whole(self):
        assert self.refused(*stepped("AdamW"), closed=[slice(0, 70)])

    def test_a_first_step_which_makes_state(self):
        assert self.refused(*stepped("AdamW", steps=0))

    def test_other_classes(self):
        parameter, optimizer = stepped("AdamW")
        other = Heavier([parameter])
        other.load_state_dict(optimizer.state_dict())
        assert self.refused(parameter, other)

    def test_no_gradient_and_a_sparse_one(self):
        parameter, optimizer = stepped("AdamW")
        assert self.refused(parameter, optimizer, gradient=False)
        parameter.grad = parameter.grad.to_sparse()
        assert self.refused(parameter, optimizer)

    @pytest.mark.parametrize("which", ["parameter", "gradient"])
    def test_entries_that_do_not_lie_in_a_row(self, which):
        parameter, optimizer = stepped("AdamW")
        if which == "gradient":
            parameter.grad = parameter.grad.T.contiguous().T
        else:
            parameter.data = parameter.data.T.contiguous().T
        assert self.refused(parameter, optimizer)

    def test_gradients_that_the_step_unscales(self):
        parameter, optimizer = stepped("AdamW fused")
        optimizer.grad_scale = torch.tensor(2.0)
        assert self.refused(parameter, optimizer)

    def test_more_pieces_than_are_worth_it(self):
        parameter, optimizer = stepped("AdamW", shape=(100, ALIGNED))
        odd = [slice(row, row + 1) for row in range(1, 100, 2)]
        assert not self.refused(parameter, optimizer, closed=odd[: MOST_RUNS - 1])
        assert self.refused(parameter, optimizer, closed=odd)


def test_rows_as_runs():
    for rows in ([], [3], [0, 1, 2], [1, 2, 5, 7, 8]):
        runs = runs_of(torch.tensor(rows, dtype=torch.int64))
        assert [row for run in runs for row in range(run.start, run.stop)] == rows
        assert all(a.stop < b.start for a, b in itertools.pairwise(runs))
    assert runs_of(torch.arange(0, 2 * MOST_RUNS, 2)) is not None
    assert runs_of(torch.arange(0, 2 * MOST_RUNS + 2, 2)) is None


# ---------------------------------------------------------------------- under an isolation, and under a hold


@pytest.fixture
def views(monkeypatch):
    """How many entries each step by views sees."""
    seen = []
    stand_in = _open_views.private.stand_in

    def counting(optimizer, groups, state):
        seen.append(sum(leaf.numel() for group in groups for leaf in group["params"]))
        return stand_in(optimizer, groups, state)

    monkeypatch.setattr(_open_views.private, "stand_in", counting)
    return seen


def held_back(kind):
    """A layer of which 50 of 70 units learn nothing, and its optimizer, after a step of all of it."""
    layer = nn.Linear(33, 70, bias=False)
    optimizer = OPTIMIZERS["AdamW"](list(layer.parameters()))
    layer.weight.grad = torch.randn(SHAPE)
    optimizer.step()
    router = gr.Router(layer, {"": gr.RoutingSpec({0: slice(0, 20), 1: slice(20, 70)}, 70)})

    def begin():
        if kind == "isolation":
            Isolation(router, optimizer).discard()
        else:
            Hold(optimizer, {layer.weight: slice(20, 70)})

    def step():
        teach(router, torch.tensor([0]))
        optimizer.step()

    return layer, optimizer, begin, step


@pytest.mark.parametrize("kind", ["isolation", "hold"])
class TestUnder:
    def test_a_step_sees_what_is_open_and_the_gradients_are_there_after_it(self, kind, views):
        layer, _, begin, step = held_back(kind)
        begin()
        layer.weight.grad = gradient = torch.randn(SHAPE)
        before = layer.weight.detach().clone()
        step()
        assert len(views) == 1
        assert 20 * 33 <= views[0] < 20 * 33 + ALIGNED
        assert (layer.weight == before).all(1).tolist() == [False] * 20 + [True] * 50
        assert layer.weight.grad is gradient

    def test_a_hook_behind_that_changes_gradients_is_heard(self, kind, views):
        """So the step is that of the optimizer itself, of the whole."""
        layer, optimizer, begin, step = held_back(kind)
        bare, its = copy.deepcopy((layer.weight, optimizer))
        begin()
        optimizer.register_step_pre_hook(lambda *_: (layer.weight.grad.fill_(1.0), None)[1])
        layer.weight.grad, bare.grad = torch.zeros(SHAPE), torch.ones(SHAPE)
        step()
        its.step()
        assert not views
        assert torch.equal(layer.weight[:20], bare[:20])

    def test_a_hook_around_all_optimizers_is_called_once(self, kind, views):
        layer, _, begin, step = held_back(kind)
        begin()
        calls = []
        handle = register_optimizer_step_pre_hook(lambda *_: calls.append(1))
        layer.weight.grad = torch.randn(SHAPE)
        step()
        handle.remove()
        assert calls == [1]
        assert not views

    def test_a_step_that_raises_loses_no_gradient_and_moves_nothing_closed(self, kind, views, monkeypatch):
        layer, optimizer, begin, step = held_back(kind)
        begin()
        whole = type(optimizer).step

        def breaks(self, *args, **kwargs):
            whole(self, *args, **kwargs)
            raise RuntimeError("on its way")

        layer.weight.grad = gradient = torch.randn(SHAPE)
        before = layer.weight.detach().clone()
        with monkeypatch.context() as patched:
            patched.setattr(type(optimizer), "step", breaks)
            with pytest.raises(RuntimeError, match="on its way"):
                step()
        assert len(views) == 1
        assert layer.weight.grad is gradient
        assert torch.equal(layer.weight[20:], before[20:])
        step()
        assert layer.weight.grad is gradient
        assert torch.equal(layer.weight[20:], before[20:])
        assert not torch.equal(layer.weight[:20], before[:20])

    def test_an_optimizer_that_was_copied_is_not_held(self, kind, views):
        layer, optimizer, begin, _ = held_back(kind)
        begin()
        bare, its = copy.deepcopy((layer.weight, optimizer))
        bare.grad = torch.randn(SHAPE)
        before = bare.detach().clone()
        its.step()
        assert not views
        assert (bare != before).any(1).all()
