"""Units that count their own steps: what comes through a checkpoint and a removal, and what is refused."""

import copy

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.tensor import DTensor, Shard, init_device_mesh
from torch.testing._internal.distributed.fake_pg import FakeStore

import gradroute as gr
from gradroute.errors import UsageError
from gradroute.optim import Hold, Isolation
from unit.optim.neurons import (
    BOTH,
    FORGET,
    NOBODY,
    OPTIMIZERS,
    RETAIN,
    SPEC,
    WRITER,
    Neurons,
    gradients_everywhere,
    moved_units,
    teach,
    tensors,
)


def counting(make=OPTIMIZERS["AdamW"], sites=WRITER, steps=(BOTH, RETAIN, RETAIN)):
    """A model, its router, and an optimizer under an isolation that counts, which has taken some steps."""
    model = Neurons()
    router = gr.Router(model, sites)
    optimizer = make(list(model.parameters()))
    isolation = Isolation(router, optimizer, own_steps=True)
    for labels in steps:
        step(model, router, optimizer, labels)
    return model, router, optimizer, isolation


def step(model, router, optimizer, labels):
    gradients_everywhere(model)
    teach(router, labels)
    return moved_units(model, optimizer.step)


def counts(optimizer, parameter):
    return optimizer.state[parameter]["step"].flatten().int().tolist()


class TestSteps:
    def test_are_counted_for_each_unit(self):
        model, router, optimizer, _ = counting()
        assert counts(optimizer, model.writer.weight) == counts(optimizer, model.writer.bias) == [3, 3, 3, 1, 3, 1, 3]
        assert optimizer.state[model.reader.weight]["step"] == 3
        assert step(model, router, optimizer, FORGET) == [3, 4, 5, 6]
        assert step(model, router, optimizer, NOBODY) == []
        assert counts(optimizer, model.writer.weight) == [3, 3, 3, 2, 4, 2, 4]

    def test_of_a_unit_that_was_held_for_long_are_as_long_as_those_of_a_new_optimizer(self):
        """Under one count the first steps after a long hold are several times as long as the learning rate says."""
        moved = {}
        for own_steps in (False, True):
            layer = nn.Linear(1, 2, bias=False)
            router = gr.Router(layer, {"": gr.RoutingSpec.one_per_label(2)})
            optimizer = torch.optim.Adam(layer.parameters(), lr=1e-3)
            Isolation(router, optimizer, own_steps=own_steps)
            layer.weight.grad = torch.tensor([[1.0], [0.0]])
            teach(router, torch.tensor([0]))
            optimizer.step()
            optimizer.state[layer.weight]["step"].mul_(5000)  # unit 0 has taken as many
            before = layer.weight[1].item()
            for _ in range(10):
                layer.weight.grad = torch.ones(2, 1)
                teach(router, torch.tensor([1]))
                optimizer.step()
            moved[own_steps] = (before - layer.weight[1].item()) / 1e-3
        assert moved[True] == pytest.approx(10, rel=1e-3)
        assert moved[False] > 50

    @pytest.mark.parametrize("name", ["AdamW", "NAdam", "SGD momentum", "Adagrad"])
    def test_of_units_that_were_never_open_before_are_first_steps(self, name):
        """Also where the parameter has state already, since other units took steps."""
        model, router, optimizer, _ = counting(OPTIMIZERS[name], steps=(RETAIN, RETAIN, RETAIN))
        only_forget = [3, 5]
        leaf = nn.Parameter(model.writer.weight.detach()[only_forget].clone())
        own = OPTIMIZERS[name]([leaf])
        for _ in range(2):
            gradients_everywhere(model)
            leaf.grad = model.writer.weight.grad[only_forget].clone()
            teach(router, FORGET)
            optimizer.step()
            own.step()
            torch.testing.assert_close(model.writer.weight[only_forget], leaf, rtol=1e-6, atol=1e-7)

    @pytest.mark.parametrize("name", ["AdamW", "SGD momentum"])
    def test_of_complex_parameters_are_those_of_tensors_of_their_own(self, name):
        layer = nn.Linear(3, 2, bias=False, dtype=torch.complex64)
        router = gr.Router(layer, {"": gr.Site(gr.RoutingSpec.one_per_label(2), level="parameters")})
        leaf = nn.Parameter(layer.weight.detach()[1:].clone())
        optimizer, own = (OPTIMIZERS[name]([p]) for p in (layer.weight, leaf))
        Isolation(router, optimizer, own_steps=True)
        for label in (0, 0, 1, 0, 1):
            layer.weight.grad = torch.randn(2, 3, dtype=torch.complex64)
            teach(router, torch.tensor([label]))
            optimizer.step()
            if label:
                leaf.grad = layer.weight.grad[1:].clone()
                own.step()
        torch.testing.assert_close(layer.weight[1:], leaf)

    @pytest.mark.filterwarnings("ignore::gradroute.UnroutedWarning")
    @pytest.mark.parametrize("name", ["AdamW", "AdamW fused", "SGD"])
    def test_write_to_the_parameter_so_that_autograd_sees_it(self, name):
        """Where a block is a piece of memory, it is a view, and not a copy, that the optimizer writes to."""
        layer = nn.Linear(3, 4, bias=False)
        router = gr.Router(layer, {"": gr.RoutingSpec({"a": [0, 1], "b": [2, 3]}, 4)})
        optimizer = OPTIMIZERS[name](list(layer.parameters()))
        Isolation(router, optimizer, own_steps=True)
        stale = torch.tanh(layer(torch.ones(1, 3, requires_grad=True))) * layer.weight.sum()
        layer.weight.grad = torch.randn(4, 3)
        teach(router, torch.tensor([0]))
        optimizer.step()
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            stale.sum().backward()

    def test_follow_the_options_of_the_groups_and_schedules(self):
        model, router, optimizer, _ = counting(lambda p: torch.optim.SGD(p, lr=1.0), steps=())
        schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
        for rate in (1.0, 0.5, 0.25):
            gradients_everywhere(model)
            before, gradient = model.writer.weight.detach().clone(), model.writer.weight.grad
            teach(router, RETAIN)
            optimizer.step()
            schedule.step()
            taught = [0, 1, 2, 4, 6]
            assert torch.equal(model.writer.weight[taught], (before - rate * gradient)[taught])

    def test_are_of_what_a_closure_teaches(self):
        model, router, optimizer, _ = counting()

        def closure():
            gradients_everywhere(model)
            teach(router, FORGET)
            return 5.0

        losses = []
        assert moved_units(model, lambda: losses.append(optimizer.step(closure))) == [3, 4, 5, 6]
        assert losses == [5.0]

    @pytest.mark.parametrize("fused", [False, True])
    def test_that_a_scaler_skips_move_and_count_nothing(self, fused):
        model, router, optimizer, isolation = counting(lambda p: torch.optim.AdamW(p, lr=0.1, fused=fused))
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
        for labels, scale, expected in ((RETAIN, torch.inf, []), (FORGET, 1.0, [3, 4, 5, 6])):
            optimizer.zero_grad()
            with router(labels):
                loss = model(torch.ones(1, 4)).sum() * scale
            scaler.scale(loss).backward()
            assert moved_units(model, lambda: scaler.step(optimizer)) == expected
            scaler.update()
            isolation.discard()
        assert counts(optimizer, model.writer.weight) == [3, 3, 3, 2, 4, 2, 4]

    def test_that_raise_lose_no_gradient(self):
        model, router, optimizer, _ = counting()
        gradients_everywhere(model)
        gradients = [parameter.grad for parameter in model.parameters()]
        before = tensors(model, optimizer)
        teach(router, FORGET)
        optimizer.param_groups[0]["betas"] = None
        with pytest.raises(TypeError):
            optimizer.step()
        assert [parameter.grad for parameter in model.parameters()] == gradients
        optimizer.param_groups[0]["betas"] = (0.9, 0.999)
        assert all(torch.equal(value, before[key]) for key, value in tensors(model, optimizer).items())
        assert moved_units(model, optimizer.step) == [3, 4, 5, 6]

    def test_of_sparse_gradients_are_those_of_tensors_of_their_own(self):
        model = nn.Embedding(5, SPEC.width, sparse=True)
        router = gr.Router(model, {"": SPEC})
        optimizer = torch.optim.SparseAdam(model.parameters(), lr=0.1)
        blocks = {"retain": [0, 1, 2], "forget": [3, 5], "shared": [4, 6]}
        leaves = {name: nn.Parameter(model.weight.detach()[:, units].clone()) for name, units in blocks.items()}
        own = {name: torch.optim.SparseAdam([leaf], lr=0.1) for name, leaf in leaves.items()}
        Isolation(router, optimizer, own_steps=True)
        taught = [(RETAIN, ["retain", "shared"]), (FORGET, ["forget", "shared"]), (BOTH, [*blocks]), (RETAIN, [])]
        for labels, names in [*taught, (RETAIN, ["retain", "shared"])]:
            rows, values = torch.tensor([[0, 2, 0]]), torch.randn(3, SPEC.width)
            gradient = torch.sparse_coo_tensor(rows, values, model.weight.shape, check_invariants=True)
            model.weight.grad = gradient
            optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
            if names:
                teach(router, labels)
                optimizer.step()
            for name in names:
                leaves[name].grad = gradient.to_dense()[:, blocks[name]].to_sparse(1)
                own[name].step()
            for name, units in blocks.items():
                torch.testing.assert_close(model.weight[:, units], leaves[name])

    def test_of_a_sparse_gradient_of_routed_rows_and_columns_are_refused(self):
        """Units of both: the entries that took the same steps are no block."""
        layer = nn.Linear(2, 2, bias=False)
        spec = gr.RoutingSpec.one_per_label(2)
        router = gr.Router(
            nn.Sequential(layer),
            {"[0]": gr.Site(spec, level="parameters"), "0": gr.Site(spec, on="input", level="parameters")},
        )
        optimizer = torch.optim.SGD([layer.weight], lr=0.1)
        Isolation(router, optimizer, own_steps=True)
        layer.weight.grad = torch.ones(2, 2)
        teach(router, torch.tensor([0]))
        optimizer.step()
        layer.weight.grad = torch.ones(2, 2).to_sparse(1)
        teach(router, torch.tensor([0, 1]))
        with pytest.raises(UsageError, match="sparse gradient cannot be cut up by units of both rows and columns"):
            optimizer.step()


class TestCheckpoints:
    @pytest.mark.parametrize("name", ["AdamW", "AdamW fused", "NAdam", "ASGD", "SGD momentum", "Adagrad"])
    def test_bring_the_counts_into_another_process(self, name, tmp_path):
        model, router, optimizer, _ = counting(OPTIMIZERS[name])
        torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "saved.pt")
        saved = torch.load(tmp_path / "saved.pt")
        other, other_router, other_optimizer, _ = counting(OPTIMIZERS[name], steps=())
        other.load_state_dict(saved["model"])
        other_optimizer.load_state_dict(saved["optimizer"])
        for labels in (FORGET, BOTH, RETAIN):
            for each in (model, other):
                torch.manual_seed(0)
                gradients_everywhere(each)
            teach(router, labels)
            optimizer.step()
            teach(other_router, labels)
            other_optimizer.step()
            assert all(map(torch.equal, model.parameters(), other.parameters()))

    def test_of_half_precision_keep_counts_whole(self):
        """Above 256 bfloat16 has no odd numbers."""
        model = Neurons().bfloat16()
        router = gr.Router(model, WRITER)
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
        Isolation(router, optimizer, own_steps=True)
        step(model, router, optimizer, BOTH)
        optimizer.state[model.writer.weight]["step"].fill_(257.0)
        optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        step(model, router, optimizer, FORGET)
        assert counts(optimizer, model.writer.weight) == [257, 257, 257, 258, 258, 258, 258]

    def test_that_an_optimizer_without_isolation_wrote_count_the_same_for_all(self):
        plain = Neurons()
        its = OPTIMIZERS["AdamW"](list(plain.parameters()))
        for _ in range(4):
            gradients_everywhere(plain)
            its.step()
        model, router, optimizer, _ = counting()
        optimizer.load_state_dict(copy.deepcopy(its.state_dict()))
        step(model, router, optimizer, FORGET)
        assert counts(optimizer, model.writer.weight) == [4, 4, 4, 5, 5, 5, 5]

    def test_serve_no_isolation_that_does_not_count(self):
        model, router, optimizer, _ = counting()
        saved = copy.deepcopy(optimizer.state_dict())
        other = OPTIMIZERS["AdamW"](list(model.parameters()))
        other.load_state_dict(saved)
        isolation = Isolation(router, other)
        gradients_everywhere(model)
        teach(router, BOTH)
        with pytest.raises(
            UsageError, match=r"counts the steps of each unit by itself.*make the isolation with own_steps"
        ):
            other.step()
        isolation.remove()
        with pytest.raises(RuntimeError):  # of torch: a count is one number
            other.step()

    def test_for_other_units_are_refused(self):
        model, _, optimizer, _ = counting()
        both = {"writer": gr.Site(SPEC, level="parameters"), "reader": gr.Site(SPEC, on="input", level="parameters")}
        other, router, its, _ = counting(sites=both)
        optimizer.state[model.reader.weight][  # as if the reader's rows had been routed
            "own_steps"
        ] = {"started": torch.ones(3, 1), "step": 0}
        optimizer.state[model.reader.weight]["step"] = torch.ones(3, 1)
        its.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        gradients_everywhere(other)
        teach(router, FORGET)
        with pytest.raises(UsageError, match=r"counts for units of shape \(3, 1\).*have \(1, 7\)"):
            its.step()

    def test_end_with_the_isolation(self):
        """Then the optimizer goes on by itself, with the counts of the unit that took the most steps."""
        model, router, optimizer, isolation = counting(OPTIMIZERS["NAdam"])
        product = optimizer.state[model.writer.weight]["mu_product"]
        isolation.remove()
        isolation.remove()
        state = optimizer.state[model.writer.weight]
        assert "own_steps" not in state
        assert state["step"] == 3
        assert state["mu_product"] == product.min()
        gradients_everywhere(model)
        assert moved_units(model, optimizer.step) == list(range(7))
        Isolation(router, optimizer)  # and another may begin

    def test_of_units_that_took_no_step_end_as_what_a_step_without_a_gradient_leaves(self):
        model, _, optimizer, isolation = counting(OPTIMIZERS["Rprop"], steps=(RETAIN,))
        isolation.remove()
        assert (optimizer.state[model.writer.weight]["step_size"][[3, 5]] == 0.1).all()

    def test_of_adafactor_are_dropped_with_the_isolation(self):
        model, _, optimizer, isolation = counting(torch.optim.Adafactor)
        isolation.remove()
        assert not optimizer.state.get(model.writer.weight)
        gradients_everywhere(model)
        assert moved_units(model, optimizer.step) == list(range(7))


class CountsInGroup(torch.optim.SGD):
    def step(self, closure=None):
        super().step(closure)
        self.param_groups[0]["k"] = self.param_groups[0].get("k", 0) + 1


class CountsInItself(torch.optim.SGD):
    total = 0

    def __init__(self, params):
        super().__init__(params, lr=0.1)
        self.total = 0

    def step(self, closure=None):
        super().step(closure)
        self.total += 1


class Keeps(torch.optim.SGD):
    def __init__(self, params, value=None):
        super().__init__(params, lr=0.1)
        self.value = value

    def step(self, closure=None):
        super().step(closure)
        for group in self.param_groups:
            for parameter in group["params"]:
                self.state[parameter]["extra"] = self.value


class Fails(torch.optim.SGD):
    def step(self, closure=None):
        raise RuntimeError("only in a good mood")


class TestRefusals:
    @pytest.mark.parametrize(
        ("make", "message"),
        [
            (torch.optim.LBFGS, "LBFGS cannot count the steps of each unit by itself: it has one history"),
            (
                lambda p: CountsInGroup([{"params": list(p), "k": 0}], lr=0.1),
                "counts for all parameters at once, in 'k'",
            ),
            (CountsInItself, "counts for all parameters at once, in 'total'"),
            (
                lambda p: Keeps(p, torch.ones(2)),
                r"state 'extra', of shape \(2,\), it is not known what belongs to a unit",
            ),
            (lambda p: Keeps(p, 5), "'extra', a int"),
            (lambda p: Fails(p, lr=0.1), r"cannot step a tensor like a parameter \(only in a good mood\)"),
        ],
    )
    def test_an_optimizer_whose_units_are_not_by_themselves(self, make, message):
        model = Neurons()
        with pytest.raises(UsageError, match=message):
            Isolation(gr.Router(model, WRITER), make(model.parameters()), own_steps=True)

    def test_adafactor_that_has_taken_steps(self):
        model = Neurons()
        optimizer = torch.optim.Adafactor(model.parameters())
        gradients_everywhere(model)
        optimizer.step()
        with pytest.raises(UsageError, match="taken steps already.*make the isolation before the first step"):
            Isolation(gr.Router(model, WRITER), optimizer, own_steps=True)

    @pytest.mark.parametrize("own_steps", [(True, False), (False, True), (True, True)])
    def test_another_isolation_of_the_same_parameters(self, own_steps):
        """The second would see no gradient, and so hold nothing."""
        model = Neurons()
        router, other = gr.Router(model, WRITER), gr.Router(model, WRITER)
        optimizer = OPTIMIZERS["AdamW"](list(model.parameters()))
        first = Isolation(router, optimizer, own_steps=own_steps[0])
        with pytest.raises(UsageError, match="another isolation of this optimizer holds units of the same parameters"):
            Isolation(other, optimizer, own_steps=own_steps[1])
        first.remove()
        Isolation(other, optimizer, own_steps=own_steps[1])

    def test_a_distributed_parameter(self):
        dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
        try:
            layer = nn.Linear(3, 4, bias=False)
            mesh = init_device_mesh("cpu", (2,))
            layer.weight = nn.Parameter(DTensor.from_local(torch.ones(2, 3), mesh, [Shard(0)], run_check=False))
            router = gr.Router(layer, {"": gr.RoutingSpec.one_per_label(4)})
            optimizer = torch.optim.AdamW(layer.parameters())
            with pytest.raises(UsageError, match="a parameter is distributed"):
                Isolation(router, optimizer, own_steps=True)
        finally:
            dist.destroy_process_group()

    def test_a_held_row_counts_with_its_unit(self):
        """Its weights and averages are still, which is all that a step does with it."""
        model, router, optimizer, _ = counting()
        Hold(optimizer, {model.writer.weight: [4]})
        assert step(model, router, optimizer, FORGET) == [3, 5, 6]
