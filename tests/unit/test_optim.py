"""`Isolation`: untaught units stay bitwise the same under every optimizer, and taught ones move as without it."""

import copy
import gc
import inspect

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, init_device_mesh
from torch.testing._internal.distributed.fake_pg import FakeStore

import gradroute as gr
from gradroute.errors import SiteError, UsageError
from gradroute.optim import Isolation
from gradroute.optim._slices import FrozenBlocks, local, put, take
from gradroute.router._attachment import attachment_of

SPEC = gr.RoutingSpec({"retain": slice(0, 3), "forget": [3, 5]}, 7, shared=[4, 6], unlabeled="none")
RETAIN, FORGET = SPEC.encode(["retain"]), SPEC.encode(["forget"])
BOTH = SPEC.encode(["retain", "forget"])
NOBODY = torch.tensor([gr.UNLABELED])


class Neurons(nn.Module):
    """Two layers around the units, of which the first writes them; at level "parameters" the second reads them."""

    def __init__(self, bias=True):
        super().__init__()
        self.writer = nn.Linear(4, SPEC.width, bias=bias)
        self.reader = nn.Linear(SPEC.width, 3, bias=bias)

    def forward(self, x):
        return self.reader(torch.tanh(self.writer(x)))


WRITER = {"writer": SPEC}
BOTH_ENDS = {
    "writer": gr.Site(SPEC, level="parameters"),
    "reader": gr.Site(SPEC, on="input", level="parameters"),
}

OPTIMIZERS = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.1),
    "SGD momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.1, dampening=0.5),
    "SGD nesterov foreach": lambda p: torch.optim.SGD(
        p, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.1, foreach=True
    ),
    "SGD fused": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.1, fused=True),
    "Adam": lambda p: torch.optim.Adam(p, lr=0.1, weight_decay=0.1, foreach=False),
    "Adam amsgrad maximize": lambda p: torch.optim.Adam(p, lr=0.1, weight_decay=0.1, amsgrad=True, maximize=True),
    "Adam fused": lambda p: torch.optim.Adam(p, lr=0.1, weight_decay=0.1, amsgrad=True, fused=True),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0.1),
    "AdamW foreach": lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0.1, foreach=True),
    "AdamW fused": lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0.1, fused=True),
    "AdamW tensor lr": lambda p: torch.optim.AdamW(p, lr=torch.tensor(0.1), weight_decay=0.1, foreach=False),
    "Adadelta": lambda p: torch.optim.Adadelta(p, weight_decay=0.1),
    "Adagrad": lambda p: torch.optim.Adagrad(p, lr=0.1, weight_decay=0.1, initial_accumulator_value=0.5),
    "Adagrad fused": lambda p: torch.optim.Adagrad(p, lr=0.1, weight_decay=0.1, fused=True),
    "Adamax": lambda p: torch.optim.Adamax(p, lr=0.1, weight_decay=0.1),
    "ASGD": lambda p: torch.optim.ASGD(p, lr=0.1, weight_decay=0.1, t0=1),
    "NAdam": lambda p: torch.optim.NAdam(p, lr=0.1, weight_decay=0.1, decoupled_weight_decay=True),
    "RAdam": lambda p: torch.optim.RAdam(p, lr=0.1, weight_decay=0.1),
    "RMSprop": lambda p: torch.optim.RMSprop(p, lr=0.1, weight_decay=0.1, centered=True, momentum=0.9),
    "Rprop": lambda p: torch.optim.Rprop(p, lr=0.1),
}
if hasattr(torch.optim, "Muon"):
    OPTIMIZERS["Muon"] = lambda p: torch.optim.Muon([q for q in p if q.ndim == 2], lr=0.1, weight_decay=0.1)
REFUSED = {"LBFGS", "Adafactor"}
OF_SPARSE_GRADIENTS = {"SparseAdam"}
MIXES_ENTRIES = {"Muon"}


def teach(router, labels):
    """A batch goes by whose examples have these labels; tests make up the gradients."""
    with router(labels):
        pass


def gradients_everywhere(model, scale=1.0):
    """Nonzero also for untaught units, as where somebody reads the weights past the router."""
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter) * scale


def tensors(model, optimizer):
    """All parameters and the state of the parameters' shape, by name: copies."""
    found = {}
    for name, parameter in model.named_parameters():
        found[name] = parameter.detach().clone()
        for key, value in optimizer.state.get(parameter, {}).items():
            if isinstance(value, torch.Tensor) and value.shape == parameter.shape:
                found[f"{name}: {key}"] = value.clone()
    return found


def frozen_entries(model, untaught, *, readers=False):
    """Which entries of each parameter belong to untaught units, by name: bool masks."""
    masks = {name: torch.zeros_like(parameter, dtype=torch.bool) for name, parameter in model.named_parameters()}
    for name, mask in masks.items():
        if name.startswith("writer"):
            mask[untaught] = True
        elif name == "reader.weight" and readers:
            mask[:, untaught] = True
    return masks


STEPS = [RETAIN, BOTH, FORGET, RETAIN, NOBODY, RETAIN, BOTH]


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
            UsageError, match=r"Outer leaves its steps to another optimizer.*the inner optimizer, \.inner"
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


def moved_units(model, step):
    """Which units' writers change in a call."""
    before = model.writer.weight.detach().clone()
    step()
    return (model.writer.weight != before).any(1).nonzero().flatten().tolist()


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

    def test_belong_to_the_one_unit_of_a_site_on_a_whole_module(self):
        one = gr.RoutingSpec({"retain": (), "forget": 0}, 1)
        model = nn.Sequential(nn.Sequential(nn.Linear(2, 3), nn.LSTM(3, 2)), nn.Linear(2, 2))
        sites = {"0": gr.Site(one, level="parameters", index=0), "1": gr.Site(one, level="parameters")}
        router = gr.Router(model, sites)
        optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.1)
        Isolation(router, optimizer)
        for labels, stays in ((RETAIN, True), (FORGET, False)):
            gradients_everywhere(model)
            before = [parameter.detach().clone() for parameter in model.parameters()]
            teach(router, labels)
            optimizer.step()
            assert all(torch.equal(*pair) is stays for pair in zip(model.parameters(), before, strict=True))
            assert bool(optimizer.state[model[1].bias]) is not stays

    def test_belong_to_the_one_unit_of_a_site_on_the_model_itself(self):
        one = gr.RoutingSpec({"retain": (), "forget": 0}, 1)
        model = Neurons()
        router = gr.Router(model, {"": gr.Site(one, level="parameters")})
        optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.1)
        Isolation(router, optimizer)
        for labels, expected in ((RETAIN, []), (FORGET, list(range(7)))):
            gradients_everywhere(model)
            teach(router, labels)
            assert moved_units(model, optimizer.step) == expected


class TestWhoElseUsesAParameter:
    def test_an_unrouted_module_that_shares_it_keeps_it_from_being_frozen(self):
        model = Neurons()
        model.tied = nn.Linear(4, SPEC.width)
        model.tied.weight = model.writer.weight
        router = gr.Router(model, WRITER)
        optimizer = OPTIMIZERS["AdamW"](model.parameters())
        Isolation(router, optimizer)
        gradients_everywhere(model)
        teach(router, FORGET)
        before = model.writer.bias.detach().clone()
        assert moved_units(model, optimizer.step) == list(range(7))
        assert (model.writer.bias != before).nonzero().flatten().tolist() == [3, 4, 5, 6]
        with pytest.raises(UsageError, match="an unrouted module shares are never frozen"):
            Isolation(router, torch.optim.SGD([model.writer.weight], lr=0.1))

    def test_two_routed_modules_freeze_what_both_freeze(self):
        model = Neurons()
        model.tied = nn.Linear(4, SPEC.width)
        model.tied.weight = model.writer.weight
        other = gr.RoutingSpec({"retain": [0, 3], "forget": [4]}, SPEC.width)
        router = gr.Router(model, {"writer": SPEC, "tied": other})
        optimizer = OPTIMIZERS["AdamW"](model.parameters())
        Isolation(router, optimizer)
        gradients_everywhere(model)
        teach(router, RETAIN)
        assert moved_units(model, optimizer.step) == [0, 1, 2, 3, 4, 6]

    def test_rows_of_one_and_columns_of_the_other_freeze_where_they_cross(self):
        rows, columns = gr.RoutingSpec({"a": 0, "b": [1, 2]}, 3), gr.RoutingSpec({"a": [0, 2], "b": 1}, 3)
        model = nn.ModuleDict({"embed": nn.Embedding(3, 3), "head": nn.Linear(3, 3, bias=False)})
        model["head"].weight = model["embed"].weight
        router = gr.Router(model, {"embed": columns, "head": gr.Site(rows, level="parameters")})
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        Isolation(router, optimizer)
        model["head"].weight.grad = torch.ones(3, 3)
        before = model["head"].weight.detach().clone()
        with router(torch.tensor([0])):
            pass
        optimizer.step()
        assert (model["head"].weight == before).tolist() == [
            [False, False, False],
            [False, True, False],
            [False, True, False],
        ]

    def test_several_sites_and_routers_on_one_module_each_freeze_theirs(self):
        other = gr.RoutingSpec({"retain": [0, 3], "forget": [4]}, SPEC.width)
        for split in (False, True):
            model = Neurons()
            sites = [{"writer": SPEC}, {"writer": other}] if split else [{"writer": [gr.Site(SPEC), gr.Site(other)]}]
            routers = [gr.Router(model, given) for given in sites]
            optimizer = OPTIMIZERS["AdamW"](model.parameters())
            for router in routers:
                Isolation(router, optimizer)
            gradients_everywhere(model)
            for router in routers:
                teach(router, RETAIN)
            assert moved_units(model, optimizer.step) == [0]

    def test_a_module_under_two_names_is_one_user(self):
        model = Neurons()
        model.again = model.writer
        router = gr.Router(model, {"writer": SPEC})
        optimizer = OPTIMIZERS["AdamW"](model.parameters())
        Isolation(router, optimizer)
        gradients_everywhere(model)
        teach(router, FORGET)
        assert moved_units(model, optimizer.step) == [3, 4, 5, 6]


class TestUnits:
    @pytest.mark.parametrize(
        ("module", "dim"),
        [
            (nn.Conv1d(2, 7, 3), 1),
            (nn.Conv2d(2, 7, 3), 1),
            (nn.Conv2d(2, 7, 3), -3),
            (nn.Conv3d(2, 7, 1), -4),
            (nn.Embedding(4, 7), -1),
            (nn.LayerNorm(7), -1),
            (nn.BatchNorm2d(7), 1),
            (nn.GroupNorm(7, 7), 1),
        ],
        ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else str(value),
    )
    def test_are_rows_of_weights_whatever_the_layer(self, module, dim):
        router = gr.Router(module, {"": gr.Site(SPEC, dim=dim)})
        optimizer = OPTIMIZERS["AdamW"](module.parameters())
        Isolation(router, optimizer)
        gradients_everywhere(module)
        before = {name: parameter.detach().clone() for name, parameter in module.named_parameters()}
        teach(router, FORGET)
        optimizer.step()
        for name, parameter in module.named_parameters():
            units = parameter.shape.index(SPEC.width)
            moved = (parameter != before[name]).movedim(units, 0).flatten(1) if parameter.ndim > 1 else None
            moved = (parameter != before[name]) if moved is None else moved.all(1)
            assert moved.nonzero().flatten().tolist() == [3, 4, 5, 6]

    @pytest.mark.parametrize(
        ("sites", "message"),
        [
            ({"0": gr.Site(SPEC, on="input")}, "site '0': no parameters .*: it masks what the modules before it learn"),
            ({"1": SPEC}, r"site '1': no parameters .*: those of a Tanh are not known.*sites=\[\.\.\.\]"),
            (
                {"": gr.Site(gr.RoutingSpec({"retain": 0, "forget": ()}, 1), on="input", level="parameters")},
                "site '': no parameters .*: those of a Sequential are not known",  # its biases read nothing
            ),
            ({"0": gr.Site(SPEC, dim=1)}, "site '0': dim 1 of the output of a Linear .*: expected dim=-1"),
            (
                {"0": gr.RoutingSpec({"retain": 0, "forget": 1}, 5)},
                "site '0': the spec routes 5 units, but the weight has 7 along its dim 0",
            ),
        ],
    )
    def test_that_no_parameters_are_known_to_belong_to_are_refused(self, sites, message):
        model = nn.Sequential(nn.Linear(4, 7), nn.Tanh())
        optimizer = OPTIMIZERS["AdamW"](model.parameters())
        router = gr.Router(model, sites)
        with pytest.raises(SiteError, match=message):
            Isolation(router, optimizer)

    def test_of_some_sites_alone_can_be_held(self):
        model = nn.Sequential(nn.Linear(4, 7), nn.Tanh(), nn.Linear(7, 7))
        optimizer = OPTIMIZERS["AdamW"](model.parameters())
        router = gr.Router(model, {"0": SPEC, "1": SPEC, "2": SPEC})
        Isolation(router, optimizer, sites=["0"])
        gradients_everywhere(model)
        before = copy.deepcopy(model)
        teach(router, FORGET)
        optimizer.step()
        assert (model[0].bias != before[0].bias).nonzero().flatten().tolist() == [3, 4, 5, 6]
        assert (model[2].bias != before[2].bias).all()
        with pytest.raises(SiteError, match="names 'zero', no site of this router"):
            Isolation(router, optimizer, sites=["zero"])

    def test_of_another_model_than_the_optimizers_are_refused(self):
        router = gr.Router(Neurons(), WRITER)
        with pytest.raises(UsageError, match="holds no parameter that belongs to units of this router"):
            Isolation(router, OPTIMIZERS["AdamW"](Neurons().parameters()))
        router.remove()
        with pytest.raises(UsageError, match="was removed"):
            Isolation(router, OPTIMIZERS["AdamW"](Neurons().parameters()))


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


@pytest.fixture
def rank_of_four(request):
    """One process that takes itself for one of four, which never speak to each other."""
    dist.init_process_group("fake", store=FakeStore(), rank=request.param, world_size=4)
    yield request.param
    dist.destroy_process_group()


class TestDistributedParameters:
    @pytest.mark.parametrize("rank_of_four", range(4), indirect=True)
    @pytest.mark.parametrize("size", [2, 5, 7, 8])
    def test_freeze_in_each_process_the_part_that_it_holds(self, rank_of_four, size):
        """As `torch.chunk` divides it, with shorter parts and empty ones at the end."""
        chunks = torch.arange(size).chunk(4)
        held = chunks[rank_of_four] if rank_of_four < len(chunks) else torch.arange(0)
        mesh = init_device_mesh("cpu", (4,))
        parameter = DTensor.from_local(torch.zeros(3, len(held)), mesh, [Shard(1)], shape=(3, size), stride=(size, 1))
        untaught = torch.arange(size) % 3 != 1
        block = FrozenBlocks([~untaught])(parameter, {1: (0,)})
        expected = untaught[held]
        if not expected.any():
            assert block is None
        else:
            put(local(parameter), block, take(torch.ones(3, len(held)), block))
            assert torch.equal(local(parameter), expected.float().expand(3, -1))

    @pytest.mark.parametrize("rank_of_four", [1], indirect=True)
    @pytest.mark.parametrize("placements", [[Partial(), Replicate()], [Shard(0), Shard(0)]], ids=str)
    def test_of_other_placements_are_refused(self, rank_of_four, placements):
        parameter = DTensor.from_local(torch.zeros(2, 2), init_device_mesh("cpu", (2, 2)), placements)
        taught = torch.arange(len(parameter)) == 0
        with pytest.raises(UsageError, match="cannot be isolated: expected Replicate, or at most one plain Shard"):
            FrozenBlocks([taught])(parameter, {0: (0,)})
