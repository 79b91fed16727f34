"""`Hold`: what it refuses, how long it lasts, and what it does with state that entries share."""

import copy
import gc
import weakref

import pytest
import torch
from prodigyopt import Prodigy
from torch import nn

import gradroute as gr
from gradroute.errors import UsageError
from gradroute.optim import Hold
from gradroute.surgery import add_units_
from unit.optim.neurons import OPTIMIZERS


def learned(make=OPTIMIZERS["AdamW"], steps=1, shape=(4, 3)):
    """A parameter that has taken some steps, and its optimizer."""
    parameter = nn.Parameter(torch.randn(shape))
    optimizer = make([parameter])
    for _ in range(steps):
        step(parameter, optimizer)
    return parameter, optimizer


def step(parameter, optimizer):
    """One for which all entries have a gradient."""
    optimizer.zero_grad()
    (parameter * torch.randn_like(parameter)).sum().backward()
    before = parameter.detach().clone()
    optimizer.step()
    return (parameter != before).flatten(1).any(1).tolist()


class TestRefusals:
    @pytest.mark.parametrize(
        ("entries", "message"),
        [
            ({}, "at least one parameter"),
            ([0], "at least one parameter.*got list of length 1"),
            (None, "got NoneType of length 0"),
            ({"weight": 0}, "must map parameters themselves.*key of type str"),
            ({nn.Parameter(torch.ones(2, 2)): 0}, r"a parameter of shape \(2, 2\).*this optimizer does not have it"),
        ],
    )
    def test_entries_that_are_none(self, entries, message):
        _, optimizer = learned()
        with pytest.raises(UsageError, match=message):
            Hold(optimizer, entries)

    def test_what_is_no_optimizer(self):
        with pytest.raises(UsageError, match=r"must be a torch.optim.Optimizer; got NoneType"):
            Hold(None, {})

    def test_an_optimizer_that_hides_another(self):
        parameter, optimizer = learned()
        outer = torch.optim.SGD([parameter], lr=0.1)
        outer.inner = optimizer
        with pytest.raises(
            UsageError, match=r"leaves its steps to another optimizer.*use the inner optimizer, \.inner"
        ):
            Hold(outer, {parameter: 0})

    def test_a_differentiable_step(self):
        parameter, optimizer = learned(lambda p: torch.optim.SGD(p, lr=0.1, differentiable=True), steps=0)
        with pytest.raises(UsageError, match="differentiable=True cannot be held"):
            Hold(optimizer, {parameter: 0})

    def test_lbfgs_with_a_history(self):
        parameter = nn.Parameter(torch.randn(4, 3))
        optimizer = torch.optim.LBFGS([parameter])
        Hold(optimizer, {parameter: 0}).remove()

        def closure():
            optimizer.zero_grad()
            loss = parameter.square().sum()
            loss.backward()
            return loss

        optimizer.step(closure)
        with pytest.raises(UsageError, match="LBFGS has taken steps already.*before the first step"):
            Hold(optimizer, {parameter: 0})

    @pytest.mark.parametrize(
        ("value", "message"),
        [
            (torch.ones(4, 1), r"'scale', of shape \(4, 1\)"),
            ([torch.ones(4, 3)], "'scale', a list"),
            (torch.ones(4, 3).as_subclass(type("Blocks", (torch.Tensor,), {})), "the class Blocks cannot be isolated"),
        ],
    )
    def test_state_of_which_it_is_not_known_what_belongs_to_an_entry(self, value, message):
        parameter, optimizer = learned()
        optimizer.state[parameter]["scale"] = value
        with pytest.raises(UsageError, match=message):
            Hold(optimizer, {parameter: 0})

    def test_such_state_that_a_step_makes_is_refused_then_and_the_weights_are_still(self):
        class Scaling(torch.optim.Optimizer):
            def __init__(self, params):
                super().__init__(params, {})

            @torch.no_grad()
            def step(self):
                for parameter in self.param_groups[0]["params"]:
                    self.state[parameter]["scale"] = torch.ones(4, 1)
                    parameter.add_(1)

        parameter, optimizer = learned(Scaling, steps=0)
        Hold(optimizer, {parameter: [1, 2]})
        before = parameter.detach().clone()
        with pytest.raises(UsageError, match="'scale'.*not known what belongs to an entry"):
            step(parameter, optimizer)
        assert torch.equal(parameter[[1, 2]], before[[1, 2]])

    def test_a_parameter_that_left_the_optimizer(self):
        parameter, optimizer = learned()
        Hold(optimizer, {parameter: 0})
        new = nn.Parameter(torch.randn(6, 3))
        optimizer.param_groups[0]["params"] = [new]
        new.grad = torch.ones_like(new)
        before = new.detach().clone()
        with pytest.raises(UsageError, match="it was replaced, or belongs to another model.*resize_token_embeddings"):
            optimizer.step()
        assert torch.equal(new, before)

    def test_a_parameter_of_another_size(self):
        model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        Hold(optimizer, {model[0].weight: 0})
        add_units_(model[0], model[2], 2, optimizer=optimizer)
        model(torch.ones(1, 3)).sum().backward()
        with pytest.raises(UsageError, match=r"has the shape \(6, 3\), and had \(4, 3\) when the hold was made"):
            optimizer.step()

    def test_a_copy(self):
        parameter, optimizer = learned()
        hold = Hold(optimizer, {parameter: 0})
        with pytest.raises(UsageError, match="neither copied nor pickled: make one for the copied optimizer"):
            copy.deepcopy(hold)


class TestLife:
    def test_ends_with_remove_or_with_the_block_and_leaves_the_hooks_of_others(self):
        parameter, optimizer = learned()
        called = []
        optimizer.register_step_post_hook(lambda *_: called.append("step"))
        parameter.register_post_accumulate_grad_hook(lambda _: called.append("gradient"))
        with Hold(optimizer, {parameter: [0, 2]}) as hold:
            assert isinstance(hold, Hold)
            assert step(parameter, optimizer) == [False, True, False, True]
        hold.remove()
        assert step(parameter, optimizer) == [True] * 4
        assert called == ["gradient", "step"] * 2

    def test_ends_with_the_optimizer(self):
        """A parameter outlives it: its gradient is not 0 for ever."""
        parameter, optimizer = learned()
        Hold(optimizer, {parameter: 0})
        gone = weakref.ref(optimizer)
        del optimizer
        gc.collect()
        assert gone() is None
        assert step(parameter, torch.optim.SGD([parameter], lr=0.1)) == [True] * 4

    def test_survives_what_joins_the_optimizer_later(self):
        parameter, optimizer = learned()
        Hold(optimizer, {parameter: 0})
        other = nn.Parameter(torch.randn(4, 3))
        optimizer.add_param_group({"params": [other], "lr": 1.0})
        other.grad = torch.randn(4, 3)
        before = other.detach().clone()
        assert step(parameter, optimizer) == [False, True, True, True]
        other.grad = torch.randn(4, 3)
        optimizer.step()
        assert (other != before).all()

    def test_goes_on_from_a_checkpoint_of_another_run(self):
        """The state that is held from then on is what was loaded."""
        parameter, optimizer = learned()
        Hold(optimizer, {parameter: [1]})
        other, other_optimizer = learned(steps=3)
        optimizer.load_state_dict(other_optimizer.state_dict())
        with torch.no_grad():
            parameter.copy_(other)
        assert step(parameter, optimizer) == [True, False, True, True]
        average = optimizer.state[parameter]["exp_avg"]
        assert torch.equal(average[1], other_optimizer.state[other]["exp_avg"][1])

    def test_of_several_on_one_parameter_each_holds(self):
        parameter, optimizer = learned()
        first = Hold(optimizer, {parameter: [0]})
        Hold(optimizer, {parameter: [0, 3]})
        assert step(parameter, optimizer) == [False, True, True, False]
        first.remove()
        assert step(parameter, optimizer) == [False, True, True, False]

    def test_begins_where_gradients_are_there_already(self):
        parameter, optimizer = learned()
        parameter.grad = torch.randn(4, 3)
        Hold(optimizer, {parameter: 0})
        optimizer.step()
        assert not parameter.grad[0].any()

    def test_holds_a_parameter_that_learns_only_later(self):
        parameter = nn.Parameter(torch.randn(4, 3), requires_grad=False)
        optimizer = torch.optim.SGD([parameter], lr=0.1, momentum=0.9)
        Hold(optimizer, {parameter: 0})
        assert not parameter.requires_grad
        parameter.requires_grad_()
        gradient = torch.randn(4, 3)
        (parameter * gradient).sum().backward()
        norm = nn.utils.clip_grad_norm_([parameter], 1.0)
        torch.testing.assert_close(norm, gradient[1:].norm())  # what is held does not count
        assert step(parameter, optimizer) == [False, True, True, True]

    def test_has_no_hook_on_what_has_no_gradient(self):
        """Such as quantized weights, which `requires_grad` is not for."""
        parameter = nn.Parameter(torch.ones(4, 3, dtype=torch.int8), requires_grad=False)
        other = nn.Parameter(torch.randn(4, 3))
        optimizer = torch.optim.AdamW([parameter, other])
        Hold(optimizer, {parameter: 0, other: 0})
        assert step(other, optimizer) == [False, True, True, True]


class TestState:
    def test_that_a_first_step_makes_is_as_if_there_were_no_gradient_and_no_decay(self):
        """Weight decay that is part of the gradient would be in Adam's averages."""
        parameter, optimizer = learned(lambda p: torch.optim.Adam(p, lr=0.1, weight_decay=0.5), steps=0)
        mask = torch.rand(4, 3) < 0.5
        Hold(optimizer, {parameter: mask})
        step(parameter, optimizer)
        for key in ("exp_avg", "exp_avg_sq"):
            assert torch.equal(optimizer.state[parameter][key] == 0, mask)

    def test_that_a_first_step_makes_is_left_where_the_optimizer_cannot_be_made_again(self):
        class Particular(torch.optim.SGD):
            def __init__(self, parameter):
                super().__init__([parameter], lr=0.1, momentum=0.9, weight_decay=0.1)

        parameter = nn.Parameter(torch.randn(4, 3))
        optimizer = Particular(parameter)
        Hold(optimizer, {parameter: 0})
        assert step(parameter, optimizer) == [False, True, True, True]
        before = optimizer.state[parameter]["momentum_buffer"].clone()
        assert step(parameter, optimizer) == [False, True, True, True]
        assert torch.equal(optimizer.state[parameter]["momentum_buffer"][0], before[0])

    def test_of_adafactor_is_still_for_whole_rows_and_goes_on_for_columns(self):
        parameter, optimizer = learned(lambda p: torch.optim.Adafactor(p, lr=0.1, weight_decay=0.1))
        Hold(optimizer, {parameter: [0, 2]})
        before = copy.deepcopy(optimizer.state[parameter])
        assert step(parameter, optimizer) == [False, True, False, True]
        after = optimizer.state[parameter]
        assert (after["row_var"] == before["row_var"]).flatten().tolist() == [True, False, True, False]
        assert not torch.equal(after["col_var"], before["col_var"])

    def test_of_adafactor_goes_on_for_what_a_mask_names(self):
        parameter, optimizer = learned(lambda p: torch.optim.Adafactor(p, lr=0.1, weight_decay=0.1))
        mask = torch.zeros(4, 3, dtype=torch.bool)
        mask[0, 1] = True
        Hold(optimizer, {parameter: mask})
        weight = parameter.detach().clone()
        step(parameter, optimizer)
        assert torch.equal(parameter == weight, mask)

    def test_held_entries_count_in_nothing_that_entries_share(self):
        """Two runs whose held entries have other gradients are one."""
        ends = []
        for scale in (1.0, 100.0):
            torch.manual_seed(0)
            parameter, optimizer = learned(lambda p: torch.optim.Adafactor(p, lr=0.1), steps=0)
            Hold(optimizer, {parameter: [0, 1]})
            for _ in range(3):
                optimizer.zero_grad()
                gradient = torch.randn(4, 3)
                gradient[:2] *= scale
                (parameter * gradient).sum().backward()
                optimizer.step()
            ends.append([parameter.detach(), optimizer.state[parameter]["col_var"]])
        assert all(torch.equal(*pair) for pair in zip(*ends, strict=True))

    def test_of_muon_adds_the_momentum_that_held_rows_had(self):
        """A held row is still; that its momentum was not 0 shows in the others' update."""
        if not hasattr(torch.optim, "Muon"):
            pytest.skip("this torch has no Muon")
        ends = []
        for momentum in (0.0, 5.0):
            torch.manual_seed(0)
            parameter, optimizer = learned(OPTIMIZERS["Muon"])
            optimizer.state[parameter]["momentum_buffer"][0] = momentum
            Hold(optimizer, {parameter: [0]})
            assert step(parameter, optimizer) == [False, True, True, True]
            assert (optimizer.state[parameter]["momentum_buffer"][0] == momentum).all()
            ends.append(parameter.detach().clone())
        assert not torch.equal(*ends)

    def test_that_is_flat_is_still(self):
        """As Prodigy's, of which some is one number until it is needed."""

        class Flat(torch.optim.Optimizer):
            def __init__(self, params):
                super().__init__(params, {})

            @torch.no_grad()
            def step(self):
                for parameter in self.param_groups[0]["params"]:
                    state = self.state[parameter]
                    state.setdefault("start", torch.tensor(0.0))
                    total = state.setdefault("total", torch.ones(parameter.numel()))
                    total.mul_(0.9).add_(parameter.grad.flatten())
                    parameter.sub_(total.view_as(parameter))

        parameter, optimizer = learned(Flat)
        Hold(optimizer, {parameter: [0, 3]})
        before = optimizer.state[parameter]["total"].clone()
        assert step(parameter, optimizer) == [False, True, True, False]
        same = (optimizer.state[parameter]["total"] == before).view(4, 3)
        assert same.all(1).tolist() == [True, False, False, True]

    def test_of_sparse_adam_is_still(self):
        embedding = nn.Embedding(5, 2, sparse=True)
        optimizer = torch.optim.SparseAdam(embedding.parameters(), lr=0.1)

        def learn(rows):
            optimizer.zero_grad()
            embedding(torch.tensor(rows)).square().sum().backward()
            optimizer.step()

        learn([0, 1, 2])
        Hold(optimizer, {embedding.weight: [0, 3]})
        before, state = embedding.weight.detach().clone(), copy.deepcopy(optimizer.state[embedding.weight])
        learn([0, 0, 1, 3])
        assert (embedding.weight == before).all(1).tolist() == [True, False, True, True, True]
        assert torch.equal(optimizer.state[embedding.weight]["exp_avg"][0], state["exp_avg"][0])
        learn([0])  # nothing is left of the gradient
        assert torch.equal(embedding.weight[0], before[0])


class TestBesideOthers:
    def test_a_scaler_unscales_and_an_overflow_in_held_entries_skips_no_step(self):
        parameter, optimizer = learned(OPTIMIZERS["AdamW"])
        Hold(optimizer, {parameter: 0})
        scaler = torch.amp.GradScaler("cpu")
        gradient = torch.randn(4, 3)
        gradient[0] = torch.inf
        optimizer.zero_grad()
        scaler.scale((parameter * gradient).sum()).backward()
        before = parameter.detach().clone()
        scaler.step(optimizer)
        scaler.update()
        assert (parameter != before).any(1).tolist() == [False, True, True, True]

    def test_a_closure_that_is_evaluated_again_has_no_held_gradient_either(self):
        class Twice(torch.optim.SGD):
            @torch.no_grad()
            def step(self, closure):
                for _ in range(2):
                    with torch.enable_grad():
                        closure()
                    super().step()

        parameter = nn.Parameter(torch.randn(4, 3))
        optimizer = Twice([parameter], lr=0.1, momentum=0.9)
        Hold(optimizer, {parameter: 0})
        seen = []

        def closure():
            optimizer.zero_grad()
            parameter.grad = torch.randn(4, 3)
            seen.append(parameter[0].tolist())

        optimizer.step(closure)
        assert seen[0] == seen[1] == parameter[0].tolist()

    def test_a_step_that_writes_after_that_of_its_base_class_moves_nothing_held(self):
        class Shrinking(torch.optim.AdamW):
            def step(self, closure=None):
                super().step(closure)
                with torch.no_grad():
                    for parameter in self.param_groups[0]["params"]:
                        parameter.mul_(0.5)
                        self.state[parameter]["exp_avg"].mul_(0.5)

        torch.optim.AdamW([nn.Parameter(torch.ones(1))])  # the first of its class: from now on its step calls hooks
        parameter, optimizer = learned(lambda p: Shrinking(p, lr=0.1))
        Hold(optimizer, {parameter: [0, 3]})
        for _ in range(2):
            average = optimizer.state[parameter]["exp_avg"].clone()
            assert step(parameter, optimizer) == [False, True, True, False]
            assert torch.equal(optimizer.state[parameter]["exp_avg"][[0, 3]], average[[0, 3]])

    def test_where_a_step_raises_on_its_way_nothing_is_put_back_and_the_next_step_holds_again(self):
        """Torch calls no hook then, and what is loaded afterwards must not be overwritten by what was before."""

        class Failing(torch.optim.AdamW):
            failing = False

            def step(self, closure=None):
                super().step(closure)
                if self.failing:
                    self.param_groups[0]["params"][0].data.add_(1)
                    raise RuntimeError("out of memory")

        parameter, optimizer = learned(lambda p: Failing(p, lr=0.1))
        Hold(optimizer, {parameter: [0, 3]})
        optimizer.failing = True
        before = parameter.detach().clone()
        with pytest.raises(RuntimeError, match="out of memory"):
            step(parameter, optimizer)
        assert (parameter != before).all()
        optimizer.failing = False
        assert step(parameter, optimizer) == [False, True, True, False]

    def test_a_watch_sees_that_held_units_did_not_move(self):
        layer = nn.Linear(3, 2)
        router = gr.Router(layer, {"": gr.RoutingSpec.one_per_label(2)})
        optimizer = torch.optim.AdamW(layer.parameters(), lr=0.1, weight_decay=0.1)
        Hold(optimizer, {layer.weight: 0, layer.bias: 0})
        with gr.watch(layer, optimizer, router) as watcher:
            for label in (0, 1):
                optimizer.zero_grad()
                with router(torch.tensor([label])):
                    layer(torch.ones(1, 3)).sum().backward()
                optimizer.step()
        watcher.report.assert_clean()
        assert watcher.report.held == ("weight", "bias")

    def test_an_audit_finds_no_leak_into_what_is_held(self):
        """The columns that read a unit, and the bias beside them."""
        model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1))
        router = gr.Router(model, {"0": gr.RoutingSpec.one_per_label(2)})
        arguments = (router, lambda x: model(x).square().mean(), torch.randn(4, 3), torch.tensor([0, 0, 1, 1]))
        leaks = {bypass.target for bypass in gr.audit(*arguments).bypasses}
        assert leaks == {"1.weight", "1.bias"}
        optimizer = torch.optim.AdamW(model.parameters())
        everything = torch.ones(1, 2, dtype=torch.bool)
        with Hold(optimizer, {model[1].weight: everything, model[1].bias: 0}):
            report = gr.audit(*arguments)
        report.assert_clean()
        assert any("a Hold keeps still" in note and "'1.weight', '1.bias'" in note for note in report.notes)
        assert not any("hooks that run after" in note for note in report.notes)


class TestProdigy:
    """An optimizer of others', whose step size is one number for all entries."""

    @pytest.mark.parametrize("decoupled", [True, False])
    def test_held_rows_and_their_state_are_still(self, decoupled):
        parameter, optimizer = learned(lambda p: Prodigy(p, weight_decay=0.1, decouple=decoupled), steps=3)
        Hold(optimizer, {parameter: [1, 2]})
        kept = {key: value[[1, 2]].clone() for key, value in optimizer.state[parameter].items() if _has_rows(value)}
        assert {"exp_avg", "exp_avg_sq"} <= kept.keys()
        for _ in range(4):
            assert step(parameter, optimizer) == [True, False, False, True]
        for key, value in kept.items():
            assert torch.equal(optimizer.state[parameter][key][[1, 2]], value), key

    def test_state_of_some_entries_only_is_refused(self):
        parameter, optimizer = learned(lambda p: Prodigy(p, slice_p=5), steps=1)
        with pytest.raises(UsageError):
            Hold(optimizer, {parameter: [1]})


def _has_rows(value):
    return isinstance(value, torch.Tensor) and value.shape == (4, 3)
