"""`Isolation`: untaught units stay bitwise the same under every optimizer, and taught ones move as without it."""

import copy
import gc
import inspect

import pytest
import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)

import gradroute as gr
from gradroute.errors import UsageError
from gradroute.optim import Isolation
from gradroute.router._attachment import attachment_of
from unit.optim.neurons import (
    BOTH,
    FORGET,
    NOBODY,
    OPTIMIZERS,
    RETAIN,
    SPEC,
    STEPS,
    WRITER,
    Neurons,
    gradients_everywhere,
    moved_units,
    teach,
    tensors,
)

BOTH_ENDS = {
    "writer": gr.Site(SPEC, level="parameters"),
    "reader": gr.Site(SPEC, on="input", level="parameters"),
}
REFUSED = {"LBFGS", "Adafactor"}
OF_SPARSE_GRADIENTS = {"SparseAdam"}
MIXES_ENTRIES = {"Muon"}


def frozen_entries(model, untaught, *, readers=False):
    """Which entries of each parameter belong to untaught units, by name: bool masks."""
    masks = {name: torch.zeros_like(parameter, dtype=torch.bool) for name, parameter in model.named_parameters()}
    for name, mask in masks.items():
        if name.startswith("writer"):
            mask[untaught] = True
        elif name == "reader.weight" and readers:
            mask[:, untaught] = True
    return masks


def isolated(sites=WRITER, make=OPTIMIZERS["AdamW"], **options):
    """A model, a router, an isolated optimizer that has taken a step for all units, and the isolation."""
    model = Neurons()
    router = gr.Router(model, sites)
    optimizer = make(list(model.parameters()))
    gradients_everywhere(model)
    optimizer.step()
    optimizer.zero_grad()
    isolation = Isolation(router, optimizer, **options)
    gradients_everywhere(model)
    return model, router, optimizer, isolation


@pytest.mark.parametrize("sites", [WRITER, BOTH_ENDS], ids=["writers", "writers and readers"])
@pytest.mark.parametrize("name", OPTIMIZERS)
class TestEveryOptimizer:
    def test_untaught_units_stay_and_the_others_move_as_without_isolation(self, name, sites):
        model = Neurons()
        router = gr.Router(model, sites)
        optimizer = OPTIMIZERS[name](list(model.parameters()))
        Isolation(router, optimizer)
        for labels in STEPS:
            gradients_everywhere(model)
            gradients = [parameter.grad.clone() for parameter in model.parameters()]
            before = tensors(model, optimizer)
            bare_model, bare_optimizer = copy.deepcopy((model, optimizer))
            teach(router, labels)
            optimizer.step()
            for parameter, gradient in zip(bare_model.parameters(), gradients, strict=True):
                parameter.grad = gradient
            bare_optimizer.step()
            after, bare = tensors(model, optimizer), tensors(bare_model, bare_optimizer)
            untaught = (SPEC.mask(labels).sum(0) == 0).nonzero().flatten()
            masks = frozen_entries(model, untaught, readers=sites is BOTH_ENDS)
            for key in after:
                mask = masks[key.split(":")[0]]
                if key in before:
                    assert torch.equal(after[key][mask], before[key][mask]), key
                if name not in MIXES_ENTRIES:
                    assert torch.equal(after[key][~mask], bare[key][~mask]), key
            taught = ~masks["writer.weight"]
            moved = after["writer.weight"] != before["writer.weight"]
            assert not taught.any() or moved[taught].any()
            assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), gradients, strict=True))

    def test_state_that_a_step_creates_for_untaught_units_is_as_if_they_had_no_gradient_and_no_decay(self, name, sites):
        model = Neurons()
        router = gr.Router(model, sites)
        optimizer = OPTIMIZERS[name](list(model.parameters()))
        Isolation(router, optimizer)
        untouched = copy.deepcopy(model)
        idle = OPTIMIZERS[name](list(untouched.parameters()))
        for group in idle.param_groups:
            group["weight_decay"] = 0.0
        for parameter in untouched.parameters():
            parameter.grad = torch.zeros_like(parameter)
        idle.step()
        gradients_everywhere(model)
        teach(router, RETAIN)
        optimizer.step()
        after, expected = tensors(model, optimizer), tensors(untouched, idle)
        for name_of_parameter, mask in frozen_entries(model, [3, 5], readers=sites is BOTH_ENDS).items():
            for key in after:
                if key.startswith(f"{name_of_parameter}: "):
                    assert torch.equal(after[key][mask], expected[key][mask]), key
                    learned = "step_size" not in key  # Rprop's first step leaves them
                    assert torch.equal(after[key][~mask], expected[key][~mask]) is not learned, key


def test_the_table_holds_every_optimizer_of_torch():
    known = {name.split()[0] for name in OPTIMIZERS} | REFUSED | OF_SPARSE_GRADIENTS | {"Optimizer"}
    assert {name for name, value in vars(torch.optim).items() if inspect.isclass(value)} == known


class TestTaught:
    def test_adds_up_over_micro_batches_and_starts_anew_after_each_step(self):
        model, router, optimizer, _ = isolated()
        teach(router, NOBODY)
        teach(router, FORGET)
        teach(router, NOBODY)
        assert moved_units(model, optimizer.step) == [3, 4, 5, 6]
        teach(router, RETAIN)
        assert moved_units(model, optimizer.step) == [0, 1, 2, 4, 6]

    def test_is_nothing_under_no_grad(self):
        model, router, optimizer, _ = isolated()
        teach(router, FORGET)
        with torch.no_grad():
            teach(router, RETAIN)
            model(torch.ones(1, 4))
        assert moved_units(model, optimizer.step) == [3, 4, 5, 6]

    @pytest.mark.filterwarnings("ignore::gradroute.UnroutedWarning")
    @pytest.mark.parametrize("training", [True, False])
    def test_is_everything_in_an_unrouted_pass(self, training):
        """In eval mode too, in which models are fine-tuned whose batch norms shall not change."""
        model, router, optimizer, _ = isolated()
        teach(router, FORGET)
        model.train(training)(torch.ones(1, 4))
        assert moved_units(model, optimizer.step) == list(range(7))

    def test_is_the_same_in_each_of_several_steps_inside_one_block(self):
        model, router, optimizer, isolation = isolated()
        with router(FORGET):
            for _ in range(3):
                model(torch.ones(1, 4))
                assert moved_units(model, optimizer.step) == [3, 4, 5, 6]
            isolation.discard()
            model(torch.ones(1, 4))
        assert moved_units(model, optimizer.step) == [3, 4, 5, 6]
        with router(RETAIN):  # what was taught before its block is over with the step
            model(torch.ones(1, 4))
            assert moved_units(model, optimizer.step) == [0, 1, 2, 4, 6]

    def test_is_known_where_the_isolation_is_made_inside_the_block(self):
        model, router, optimizer, isolation = isolated()
        isolation.remove()
        model.zero_grad()
        with router(FORGET):
            Isolation(router, optimizer)
            model(torch.ones(1, 4)).sum().backward()
        assert moved_units(model, optimizer.step) == [3, 4, 5, 6]

    @pytest.mark.parametrize(
        ("labels", "expected"),
        [
            (torch.tensor([[1.0, 0.0]]), [0, 1, 2, 4, 6]),
            (torch.tensor([[0.5, 0.5]]), list(range(7))),
            (torch.tensor([[False, True]]), [3, 4, 5, 6]),
        ],
        ids=["mixture of one", "mixture of both", "multi-hot"],
    )
    def test_is_what_any_weight_but_0_teaches(self, labels, expected):
        model, router, optimizer, _ = isolated()
        teach(router, labels)
        assert moved_units(model, optimizer.step) == expected

    def test_is_everything_for_examples_whose_labels_are_missing(self):
        spec = gr.RoutingSpec({"retain": slice(0, 3), "forget": [3, 5]}, 7, unlabeled="all")
        model, router, optimizer, _ = isolated({"writer": spec})
        teach(router, torch.tensor([0, gr.UNLABELED]))
        assert moved_units(model, optimizer.step) == list(range(7))

    def test_is_everything_where_gradients_were_there_before_the_isolation(self):
        model, router, optimizer, isolation = isolated()
        isolation.remove()
        Isolation(router, optimizer)
        assert moved_units(model, optimizer.step) == list(range(7))
        teach(router, FORGET)
        assert moved_units(model, optimizer.step) == [3, 4, 5, 6]

    def test_is_what_a_closure_teaches(self):
        model, router, optimizer, _ = isolated()

        def closure():
            teach(router, FORGET)
            return 5.0

        teach(router, NOBODY)
        losses = []
        assert moved_units(model, lambda: losses.append(optimizer.step(closure))) == [3, 4, 5, 6]
        assert moved_units(model, lambda: losses.append(optimizer.step(closure=closure))) == [3, 4, 5, 6]
        assert losses == [5.0, 5.0]

    @pytest.mark.parametrize("change", ["replaced", "parametrized"])
    def test_is_of_the_parameters_that_were_there_when_it_was_made(self, change):
        layer = nn.Linear(3, 3)
        router = gr.Router(layer, {"": gr.RoutingSpec.one_per_label(3)})
        optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
        Isolation(router, optimizer)
        if change == "replaced":
            layer.weight = nn.Parameter(layer.weight.detach().clone())
            optimizer.add_param_group({"params": [layer.weight]})
        else:
            nn.utils.parametrizations.orthogonal(layer)
        with router(torch.tensor([0])):
            layer(torch.ones(1, 3)).sum().backward()
        with pytest.raises(UsageError, match="the weight of this .*Linear is no longer the parameter"):
            optimizer.step()

    def test_is_refused_for_an_embedding_that_scales_its_rows_as_it_runs(self):
        layer = nn.Embedding(4, 3, max_norm=1.0)
        router = gr.Router(layer, {"": gr.RoutingSpec.one_per_label(3)})
        with pytest.raises(UsageError, match="max_norm"):
            Isolation(router, torch.optim.SGD(layer.parameters(), lr=0.1))

    def test_cannot_be_told_of_a_closure_that_is_evaluated_again_after_weights_changed(self):
        class Twice(torch.optim.SGD):
            def step(self, closure=lambda: None):
                closure()
                return closure()

        _, _, optimizer, _ = isolated(make=lambda p: Twice(p, lr=0.1))
        with pytest.raises(UsageError, match="Twice evaluates its closure more than once a step"):
            optimizer.step(lambda: None)

    def test_is_kept_for_each_of_several_optimizers(self):
        model = Neurons()
        router = gr.Router(model, BOTH_ENDS)
        first = torch.optim.SGD(model.writer.parameters(), lr=0.1, weight_decay=0.1)
        second = torch.optim.SGD(model.reader.parameters(), lr=0.1, weight_decay=0.1)
        Isolation(router, first)
        Isolation(router, second)
        gradients_everywhere(model)
        teach(router, FORGET)
        assert moved_units(model, first.step) == [3, 4, 5, 6]
        teach(router, RETAIN)
        assert moved_units(model, first.step) == [0, 1, 2, 4, 6]
        before = model.reader.weight.detach().clone()
        second.step()  # for both batches
        assert (model.reader.weight != before).all()
        teach(router, RETAIN)
        before = model.reader.weight.detach().clone()
        second.step()
        assert (model.reader.weight != before).any(0).nonzero().flatten().tolist() == [0, 1, 2, 4, 6]

    def test_is_forgotten_with_gradients_that_are_thrown_away(self):
        model, router, optimizer, isolation = isolated()
        teach(router, RETAIN)
        isolation.discard()
        teach(router, FORGET)
        assert moved_units(model, optimizer.step) == [3, 4, 5, 6]

    def test_a_step_that_raises_forgets_nothing(self):
        model, router, optimizer, _ = isolated()
        teach(router, RETAIN)
        gradient, model.reader.bias.grad = model.reader.bias.grad, None
        optimizer.param_groups[0]["betas"] = None
        with pytest.raises(TypeError):
            optimizer.step()
        optimizer.param_groups[0]["betas"] = (0.9, 0.999)
        model.reader.bias.grad = gradient
        assert moved_units(model, optimizer.step) == [0, 1, 2, 4, 6]

    def test_a_refused_step_loses_no_gradient(self):
        forget_only = gr.RoutingSpec({"retain": [], "forget": slice(0, 7)}, 7)
        sites = {"writer": gr.Site(forget_only, level="parameters"), "reader": BOTH_ENDS["reader"]}
        model, router, optimizer, _ = isolated(sites)
        gradient = model.writer.weight.grad
        optimizer.state[model.reader.weight]["scale"] = torch.ones(2)
        teach(router, RETAIN)
        with pytest.raises(UsageError, match="'scale'"):
            optimizer.step()
        assert model.writer.weight.grad is gradient


class TestWholeParameters:
    def test_are_not_seen_by_the_optimizer_so_that_their_count_stands_still(self):
        model, _, optimizer, _ = isolated()
        gradient = model.writer.weight.grad
        assert moved_units(model, optimizer.step) == []
        assert model.writer.weight.grad is gradient
        assert optimizer.state[model.writer.weight]["step"] == 1
        assert optimizer.state[model.reader.weight]["step"] == 2


class Shrinking(torch.optim.AdamW):
    """Writes weights and state after the step of its base class, which calls the hooks of a step, too."""

    def step(self, closure=None):
        super().step(closure)
        with torch.no_grad():
            for parameter in self.param_groups[0]["params"]:
                if parameter.grad is not None:
                    parameter.mul_(0.5)
                    self.state[parameter]["exp_avg"].mul_(0.5)


@pytest.mark.parametrize("own_steps", [False, True])
def test_a_step_that_writes_after_that_of_its_base_class_moves_nothing_untaught(own_steps):
    torch.optim.AdamW([nn.Parameter(torch.ones(1))])  # the first of its class: from now on its step calls hooks
    model, router, optimizer, _ = isolated(make=lambda p: Shrinking(p, lr=0.1), own_steps=own_steps)
    for labels, units in ((FORGET, [3, 4, 5, 6]), (RETAIN, [0, 1, 2, 4, 6])):
        before = tensors(model, optimizer)["writer.weight: exp_avg"]
        gradients_everywhere(model)
        teach(router, labels)
        moved = moved_units(model, optimizer.step)
        after = tensors(model, optimizer)["writer.weight: exp_avg"]
        assert moved == units == (after != before).any(1).nonzero().flatten().tolist()


@pytest.mark.parametrize("own_steps", [False, True])
@pytest.mark.parametrize("options", [{}, {"full_state_dict": True}, {"flatten_optimizer_state_dict": True}], ids=str)
@pytest.mark.parametrize("name", ["AdamW", "AdamW fused", "SGD momentum", "NAdam"])
def test_the_step_by_which_torch_makes_state_to_load_into_makes_all_of_it_and_moves_nothing(name, options, own_steps):
    """Of zero gradients, at a rate of 0. Of parameters that were hidden from it, nothing was loaded, without a word."""
    options = StateDictOptions(**options)
    runs = []
    for _ in range(2):
        model = Neurons()
        router = gr.Router(model, WRITER)
        optimizer = OPTIMIZERS[name](list(model.parameters()))
        Isolation(router, optimizer, own_steps=own_steps)
        runs.append((model, router, optimizer))
    for labels in (BOTH, FORGET, RETAIN):
        gradients_everywhere(runs[0][0])
        teach(runs[0][1], labels)
        runs[0][2].step()
    saved = copy.deepcopy(get_optimizer_state_dict(runs[0][0], runs[0][2], options=options))
    runs[1][0].load_state_dict(runs[0][0].state_dict())
    before = [parameter.detach().clone() for parameter in runs[1][0].parameters()]
    get_optimizer_state_dict(runs[1][0], runs[1][2], options=options)  # what is saved is loaded into this
    set_optimizer_state_dict(runs[1][0], runs[1][2], saved, options=options)
    assert all(map(torch.equal, runs[1][0].parameters(), before))
    for labels in (RETAIN, FORGET, NOBODY, BOTH):
        for model, router, optimizer in runs:
            torch.manual_seed(0)
            gradients_everywhere(model)
            teach(router, labels)
            optimizer.step()
        first, second = (tensors(model, optimizer) for model, _, optimizer in runs)
        assert first.keys() == second.keys()
        assert all(torch.equal(value, second[key]) for key, value in first.items())


@pytest.mark.parametrize(
    ("lr", "scale"), [(0.0, 1.0), (0.1, 0.0)], ids=["a rate of 0 alone", "gradients of zero alone"]
)
def test_a_first_step_that_is_no_such_is_held_off_as_any_other(lr, scale):
    """Such as the first of a warm-up."""
    model = Neurons()
    router = gr.Router(model, WRITER)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.1)
    Isolation(router, optimizer)
    gradients_everywhere(model, scale)
    teach(router, NOBODY)
    assert moved_units(model, optimizer.step) == []
    assert not optimizer.state.get(model.writer.weight)


@pytest.mark.parametrize("own_steps", [False, True])
def test_removed_by_a_closure_it_does_nothing_more(own_steps):
    model, router, optimizer, isolation = isolated(own_steps=own_steps)

    def closure():
        gradients_everywhere(model)
        teach(router, FORGET)
        isolation.remove()

    assert moved_units(model, lambda: optimizer.step(closure)) == list(range(7))
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert "own_steps" not in optimizer.state[model.writer.weight]


class TestLife:
    def test_ends_with_remove_or_with_the_block_and_leaves_the_hooks_of_others(self):
        model, router, optimizer, isolation = isolated()
        called = []
        optimizer.register_step_post_hook(lambda *_: called.append(1))
        isolation.remove()
        isolation.remove()
        with Isolation(router, optimizer) as entered:
            assert isinstance(entered, Isolation)
            teach(router, NOBODY)
            optimizer.zero_grad()
            entered.discard()
            assert moved_units(model, optimizer.step) == []
        gradients_everywhere(model)
        assert moved_units(model, optimizer.step) == list(range(7))
        assert called == [1, 1]

    def test_ends_with_an_error_if_the_router_goes_first(self):
        model, router, optimizer, isolation = isolated()
        router.remove()
        with pytest.raises(UsageError, match=r"router of this isolation was removed.*isolation\.remove\(\)"):
            optimizer.step()
        isolation.remove()
        assert moved_units(model, optimizer.step) == list(range(7))

    def test_leaves_no_record_behind(self):
        _, router, optimizer, isolation = isolated()
        isolation.remove()
        assert not attachment_of(router).state.records
        isolation = Isolation(router, optimizer)
        assert len(attachment_of(router).state.records) == 1
        del isolation, optimizer
        gc.collect()
        assert not attachment_of(router).state.records

    def test_cannot_be_copied(self):
        *_, isolation = isolated()
        with pytest.raises(UsageError, match="neither copied nor pickled: make one for the copied router"):
            copy.deepcopy(isolation)

    def test_goes_on_after_the_optimizer_has_loaded_a_checkpoint(self):
        model, router, optimizer, _ = isolated()
        optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        before = tensors(model, optimizer)
        teach(router, FORGET)
        optimizer.step()
        after = tensors(model, optimizer)
        for key in ("writer.weight", "writer.weight: exp_avg", "writer.weight: exp_avg_sq"):
            assert (after[key] != before[key]).any(1).tolist() == [False, False, False, True, True, True, True]

    def test_holds_what_joins_the_optimizer_later(self):
        model = Neurons()
        router = gr.Router(model, WRITER)
        optimizer = torch.optim.SGD([model.writer.bias], lr=0.1)
        Isolation(router, optimizer)
        optimizer.add_param_group({"params": [model.writer.weight]})
        gradients_everywhere(model)
        teach(router, FORGET)
        assert moved_units(model, optimizer.step) == [3, 4, 5, 6]
