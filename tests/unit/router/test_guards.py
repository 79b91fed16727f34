"""What could lose the mask is refused, or warned of."""

import copy
import pickle
import threading
from dataclasses import dataclass

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils.checkpoint import checkpoint

import gradroute as gr
from gradroute.errors import LabelError, SiteError, UsageError
from gradroute.optim import Isolation
from gradroute.router._attachment import attachment_of
from unit.router.small import LABELS, SPEC, UNLABELED, bias_gradient, mlp


class WithTarget(nn.Module):
    """Two layers, of which one makes what the other is to come near to."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Linear(2, 3)
        self.target = nn.Linear(2, 3)

    def forward(self, x, target=None):
        found = self.encoder(x) if target is None else self.encoder(x) + target(x)
        with torch.no_grad():
            aim = self.target(x)
        return (found - aim).square()


class TestWhatCouldLoseTheMask:
    def test_a_training_pass_without_labels_warns_once(self):
        model = mlp()
        gr.Router(model, {"0": SPEC})
        with pytest.warns(
            gr.UnroutedWarning, match="site '0' ran a training forward pass with no labels set"
        ) as caught:
            model(torch.ones(2, 2))
            model(torch.ones(2, 2))
        assert len(caught) == 1

    def test_an_ablated_training_pass_without_labels_warns_too(self):
        model = mlp()
        router = gr.Router(model, {"0": SPEC})
        unrouted = pytest.warns(gr.UnroutedWarning, match="site '0' ran a training forward pass with no labels set")
        with unrouted, router.ablated(1):
            model(torch.ones(2, 2))

    def test_a_training_pass_that_returns_a_dataclass_warns_too(self):
        @dataclass
        class Output:
            hidden: torch.Tensor

        class Model(nn.Linear):
            def forward(self, x):
                return Output(super().forward(x))

        model = Model(2, 3)
        gr.Router(model, {"": gr.Site(SPEC, index="hidden")})
        with pytest.warns(gr.UnroutedWarning, match="no labels set"):
            model(torch.ones(2, 2))

    @pytest.mark.filterwarnings("error")
    def test_evaluation_without_labels_does_not_warn(self):
        model = mlp()
        gr.Router(model, {"0": SPEC})
        with torch.no_grad():
            model(torch.ones(2, 2))
        model.eval()(torch.ones(2, 2))

    @pytest.mark.filterwarnings("error")
    def test_a_training_pass_in_which_nothing_learns_does_not_warn(self):
        model = mlp().requires_grad_(False)
        gr.Router(model, {"0": SPEC})
        model(torch.ones(2, 2))

    def test_a_site_whose_module_is_never_called_warns(self):
        class Reads(nn.Module):
            def __init__(self):
                super().__init__()
                self.called, self.read = nn.Linear(2, 3), nn.Linear(3, 3)

            def forward(self, x):
                return nn.functional.linear(self.called(x), self.read.weight)

        model = Reads()
        router = gr.Router(model, {"called": SPEC, "read": SPEC})
        with pytest.warns(gr.UnroutedWarning, match="the sites 'read' did not"), router(LABELS):
            model(torch.ones(2, 2))

    @pytest.mark.filterwarnings("error")
    @pytest.mark.parametrize("level", ["activations", "parameters"])
    def test_a_site_that_the_model_computes_without_gradients_warns(self, level):
        model = WithTarget()
        router = gr.Router(model, {"target": gr.Site(SPEC, level=level)})
        with pytest.warns(gr.UnroutedWarning, match="the sites 'target' ran without gradients") as caught:
            for _ in range(2):
                with router(LABELS):
                    model(torch.ones(2, 2)).sum().backward()
        assert len(caught) == 1

    @pytest.mark.filterwarnings("error")
    def test_passes_without_gradients_that_lose_nothing_do_not_warn(self):
        model = WithTarget()
        router = gr.Router(model, {"*": SPEC})
        with router(LABELS), torch.no_grad():  # the model as a whole
            model(torch.ones(2, 2))
        with router(LABELS):  # with gradients too, after and before
            with torch.no_grad():
                model.target(torch.ones(2, 2))
            model(torch.ones(2, 2), target=model.target).sum().backward()
        with router(LABELS), torch.no_grad():  # a part of it, when the model has learned before
            model.target(torch.ones(2, 2))

    @pytest.mark.filterwarnings("error")
    def test_a_reentrant_checkpoint_is_no_pass_without_gradients(self):
        x = torch.ones(2, 2, requires_grad=True)

        class Checkpointed(nn.Module):
            def __init__(self):
                super().__init__()
                self.inner = mlp()

            def forward(self, x):
                return checkpoint(self.inner, x, use_reentrant=True)

        model = Checkpointed()
        router = gr.Router(model, {"inner.0": SPEC})
        with router(LABELS):
            model(x).sum().backward()
        with router(LABELS):
            model(x).sum()  # backward may come later, or not at all

    def test_a_block_in_which_the_model_did_not_run_does_not_warn(self):
        with gr.Router(mlp(), {"0": SPEC})(LABELS):
            pass

    @pytest.mark.filterwarnings("error")
    def test_a_block_that_raises_warns_of_no_site_behind_the_error(self):
        model = mlp()
        router = gr.Router(model, {"0": SPEC, "2": SPEC})

        def fail(*_):
            raise KeyError

        model[1].register_forward_hook(fail)
        with pytest.raises(KeyError), router(LABELS):
            model(torch.ones(2, 2))

    @pytest.mark.parametrize("block", [lambda router: router(LABELS), lambda router: router.ablated(0)])
    def test_another_thread_is_refused_while_one_is_in_a_block(self, block):
        model = mlp()
        router = gr.Router(model, {"0": SPEC})
        errors = []

        def run(action):
            try:
                action()
            except UsageError as error:
                errors.append(str(error))

        def enter():
            with router(UNLABELED):
                pass

        with block(router):
            for action in (enter, lambda: model(torch.ones(2, 2))):
                thread = threading.Thread(target=run, args=(action,))
                thread.start()
                thread.join()
        assert "in use in another thread" in errors[0]
        assert "site '0': the router holds the labels of another thread" in errors[1]

    def test_another_thread_may_go_on_after_the_block(self):
        router = gr.Router(mlp(), {"0": SPEC})
        entered = []

        def enter():
            with router(UNLABELED), router.ablated(0):
                entered.append(router.labels)

        for block in (router(LABELS), router.ablated(0)):
            with block:
                pass
            thread = threading.Thread(target=enter)
            thread.start()
            thread.join()
        assert len(entered) == 2

    def test_threads_with_a_model_and_router_each_do_not_disturb_each_other(self):
        results = {}

        def train(label):
            model = copy.deepcopy(base)
            router = gr.Router(model, {"0": SPEC})
            for _ in range(20):
                with router(torch.full((2,), label)):
                    results[label] = bias_gradient(model).ne(0).tolist()

        base = mlp()
        threads = [threading.Thread(target=train, args=(label,)) for label in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert results == {label: torch.eye(3).bool()[label].tolist() for label in range(3)}

    @pytest.mark.parametrize("ran_before", [False, True])
    def test_a_module_that_was_replaced_is_refused(self, ran_before):
        model = mlp()
        router = gr.Router(model, {"0": SPEC})
        if ran_before:
            with router(LABELS):
                model(torch.ones(2, 2))
        model[0] = nn.Linear(2, 3)
        with pytest.raises(UsageError, match="modules of the sites '0' are no longer in the model"):
            router(LABELS).__enter__()
        with pytest.raises(UsageError, match="no longer in the model"):
            router.ablated(0).__enter__()
        assert router.labels is None

    def test_a_module_that_was_wrapped_is_routed_still(self):
        model = mlp()
        router = gr.Router(model, {"0": SPEC})
        model[0] = nn.Sequential(model[0])
        for _ in range(2):
            with router(LABELS):
                model(torch.ones(2, 2)).sum().backward()
            assert model[0][0].bias.grad[1] == 0

    @pytest.mark.parametrize("trainable", [False, True])
    def test_an_adapter_put_around_a_site_later_is_refused_if_it_learns(self, trainable):
        class Adapted(nn.Module):
            def __init__(self, base):
                super().__init__()
                self.base_layer = base
                self.adapter = nn.Linear(2, 3, bias=False).requires_grad_(trainable)

            def forward(self, x):
                return self.base_layer(x) + self.adapter(x)

        model = mlp()
        router = gr.Router(model, {"0": SPEC})
        model[0] = Adapted(model[0])
        for _ in range(2):
            if trainable:
                with pytest.raises(UsageError, match=r"'0' was wrapped in a Adapted .*\('adapter.weight'\)"):
                    router(LABELS).__enter__()
            else:
                with router(LABELS):
                    model(torch.ones(2, 2)).sum().backward()

    @pytest.mark.parametrize(
        "block", [lambda router, label: router(label.expand(2)), lambda router, label: router.ablated(label.item())]
    )
    def test_blocks_that_overlap_are_refused_and_leave_none_open(self, block):
        router = gr.Router(mlp(), {"0": SPEC})

        def task(label):
            with block(router, torch.tensor(label)):
                yield

        one, other = task(0), task(1)
        next(one), next(other)
        for running in (one, other):  # neither ended within the other
            with pytest.raises(UsageError, match="blocks of one router overlapped"):
                next(running)
        assert router.labels is None
        assert not attachment_of(router).state.active

    def test_labels_that_are_refused_as_a_block_begins_are_not_left_behind(self):
        model = mlp()
        router = gr.Router(model, {"0": SPEC})
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        labels = LABELS.clone()
        block = router(labels)
        with Isolation(router, optimizer):
            labels.fill_(1)
            with pytest.raises(LabelError, match="changed in place"):
                block.__enter__()
        assert router.labels is None

    def test_labels_made_in_inference_mode_may_be_written_to_later(self):
        model = mlp()
        router = gr.Router(model, {"0": SPEC})
        expected = {}
        for name in ("kept", "written"):
            with torch.inference_mode():
                labels = LABELS.clone()
            model.zero_grad()
            with router(labels):
                loss = model(torch.ones(2, 2)).sum()
                if name == "written":
                    with torch.inference_mode():
                        labels.fill_(1)
                loss.backward()
            expected[name] = model[0].bias.grad.clone()
        assert torch.equal(expected["kept"], expected["written"])

    def test_an_ablated_module_that_is_never_called_warns(self):
        class Around(nn.Module):
            def __init__(self):
                super().__init__()
                self.inner = nn.Linear(2, 3)

            def forward(self, x):
                return nn.functional.linear(x, self.inner.weight)

        model = Around()
        router = gr.Router(model, {"inner": SPEC})
        with pytest.warns(gr.UnroutedWarning, match="routed and ablated nothing"), torch.no_grad(), router.ablated(0):
            model(torch.ones(1, 2))

    @pytest.mark.parametrize(
        "again", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))], ids=["deepcopy", "pickle"]
    )
    def test_a_copy_of_the_model_alone_refuses_to_learn_unrouted(self, again):
        model = mlp()
        router = gr.Router(model, {"0": SPEC})
        stray = again(model)
        with router(LABELS), pytest.raises(UsageError, match="its router was not copied with it.*Copy both at once"):
            stray(torch.ones(2, 2))
        with torch.no_grad():
            assert torch.equal(stray(torch.ones(2, 2)), model(torch.ones(2, 2)))


@pytest.fixture
def one_of_two_processes():
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("one_of_two_processes")
class TestOneOfSeveralProcesses:
    def test_training_what_was_exported_says_that_nothing_was_routed(self):
        """As the stages of a pipeline are that `torch.distributed.pipelining.pipeline` cuts out of a model."""
        model, x = nn.Sequential(nn.Linear(2, 2)), torch.ones(2, 2)
        program = torch.export.export(model, (x,)).module()
        router = gr.Router(model, {"0": gr.RoutingSpec.one_per_label(2)})
        with pytest.warns(gr.UnroutedWarning, match="got gradients"), router(torch.tensor([0, 1])):
            program(x).sum().backward()

    @pytest.mark.filterwarnings("error::gradroute.UnroutedWarning")
    def test_a_site_that_is_silent_here_may_have_run_elsewhere(self):
        model = nn.ModuleDict({"here": nn.Linear(2, 2), "there": nn.Linear(2, 2)})
        router = gr.Router(model, {"*": gr.RoutingSpec.one_per_label(2)})
        with router(torch.tensor([0, 1])):
            (model["here"](torch.ones(2, 2)) + model["there"](torch.ones(2, 2))).sum().backward()
        with router(torch.tensor([0, 1])):
            model["here"](torch.ones(2, 2)).sum().backward()
            model["there"].weight.grad = torch.ones(2, 2)  # as DistributedDataParallel writes it


@pytest.mark.parametrize("grad", [False, True])
def test_a_module_that_works_in_place_on_an_input_with_silent_units_is_refused_without_gradients_too(grad):
    """Its caller would go on with units that are on."""
    quiet = gr.RoutingSpec.one_per_label(3, silent="others")
    model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(inplace=True))
    router = gr.Router(model, {"1": gr.Site(quiet, on="input")})
    with torch.set_grad_enabled(grad), router(torch.tensor([0])), pytest.raises(SiteError, match="works in place"):
        model(torch.randn(1, 2))


@pytest.fixture
def for_all_modules():
    """Registers hooks for all modules, and takes them off again."""
    handles = []
    yield lambda hook: handles.append(nn.modules.module.register_module_forward_hook(hook))
    for handle in handles:
        handle.remove()


class TestHooksInFront:
    """A hook that came to stand before a site's own sees what is not routed yet; a loss on that teaches every unit."""

    @staticmethod
    def taught(model, router, seen):
        """What a loss on what the hook saw teaches the unit of label 1, in a batch without it."""
        model.zero_grad()
        with router(LABELS):
            model(torch.ones(2, 2))
            sum(each.sum() for each in seen).backward()
        return bool(model[0].bias.grad[1])

    @pytest.mark.parametrize("began_before", [False, True])
    @pytest.mark.parametrize("where", ["on the module", "for all modules"])
    def test_are_warned_of_once_by_the_next_block(self, for_all_modules, where, began_before):
        model, seen = mlp(), []
        router = gr.Router(model, {"0": SPEC})
        if began_before:
            with router(LABELS):
                model(torch.ones(2, 2))

        def keep(module, args, output):
            if module is model[0]:
                seen.append(output)

        if where == "on the module":
            model[0].register_forward_hook(keep, prepend=True)
        else:
            for_all_modules(keep)
        with pytest.warns(
            gr.UnroutedWarning, match="site '0': the forward hook '.*keep' sees what .* before it is rou"
        ):
            assert self.taught(model, router, seen)
        with router(LABELS):
            model(torch.ones(2, 2))

    @pytest.mark.filterwarnings("error::gradroute.UnroutedWarning")
    @pytest.mark.parametrize("when", ["before the router", "after the router", "by another router", "from torch"])
    def test_are_none_where_nothing_of_others_stands_before(self, when):
        model, seen = mlp(), []

        def keep(module, args, output):
            seen.append(output)

        if when == "before the router":
            model[0].register_forward_hook(keep, prepend=True)
        router = gr.Router(model, {"0": SPEC})
        if when == "after the router":
            model[0].register_forward_hook(keep)
        elif when == "by another router":
            gr.Router(model, {"0": SPEC})
        elif when == "from torch":
            model[0].register_forward_hook(torch.nn.functional.relu, prepend=True)
        if when.endswith("the router"):
            assert not self.taught(model, router, seen)
        else:
            with router(LABELS):
                pass

    @pytest.mark.filterwarnings("error::gradroute.UnroutedWarning")
    def test_at_level_parameters_see_what_is_routed(self):
        model, seen = mlp(), []
        router = gr.Router(model, {"0": gr.Site(SPEC, level="parameters")})
        model[0].register_forward_hook(lambda module, args, output: seen.append(output), prepend=True)
        assert not self.taught(model, router, seen)

    @pytest.mark.parametrize("again", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))])
    def test_are_seen_on_a_copy_too(self, again):
        original = mlp()
        model, router = again((original, gr.Router(original, {"0": SPEC})))
        model[0].register_forward_hook(lambda module, args, output: None, prepend=True)
        with pytest.warns(gr.UnroutedWarning, match="before it is routed"), router(LABELS):
            model(torch.ones(2, 2))


@pytest.mark.parametrize("first", ["the router", "the layer's division"])
@pytest.mark.usefixtures("one_of_two_processes")
def test_a_spec_for_the_part_of_a_layer_that_a_process_holds_is_refused(first):
    """It fits the plain part that `RowwiseParallel` is given, and would mean other units in each process."""
    mesh = init_device_mesh("cpu", (2,))
    model = nn.Sequential(nn.ReLU(), nn.Linear(6, 2, bias=False))

    def divide():
        model[1].weight = nn.Parameter(distribute_tensor(model[1].weight.detach(), mesh, [Shard(1)]))

    def attach(spec):
        return gr.Router(model, {"1": gr.Site(spec, on="input")})

    refused = pytest.raises(SiteError, match="the spec has 3 units, and the layer has 6, of which this process holds 3")
    if first == "the router":
        router, whole = attach(SPEC), attach(gr.RoutingSpec.one_per_label(6))
        with router(LABELS):
            pass
        divide()
        for _ in range(2):
            with refused, router(LABELS):
                pass
            assert router.labels is None
        with whole(LABELS):
            pass
    else:
        divide()
        with refused:
            attach(SPEC)
        attach(gr.RoutingSpec.one_per_label(6))


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


class TestRemovedBeforeTheRecomputation:
    @staticmethod
    def checkpointed(spec, *, reentrant, level="activations", ablated=False):
        model = mlp()
        router = gr.Router(model, {"0": gr.Site(spec, level=level)})
        x = torch.ones(2, 2, requires_grad=True)
        with router(LABELS):
            if ablated:
                with router.ablated(1):
                    loss = checkpoint(model, x, use_reentrant=reentrant).sum()
            else:
                loss = checkpoint(model, x, use_reentrant=reentrant).sum()
        return model, router, loss

    @pytest.mark.parametrize("level", ["activations", "parameters"])
    def test_a_reentrant_pass_raises_in_backward(self, level):
        _, router, loss = self.checkpointed(SPEC, reentrant=True, level=level)
        router.remove()
        with pytest.raises(UsageError, match="the router that it first ran under was removed"):
            loss.backward()

    @pytest.mark.filterwarnings("error::gradroute.UnroutedWarning")
    def test_another_is_routed_as_it_was(self):
        model, router, loss = self.checkpointed(SPEC, reentrant=False)
        router.remove()
        loss.backward()
        assert model[0].bias.grad.ne(0).tolist() == [True, False, True]

    def test_another_at_level_parameters_raises_in_backward(self):
        _, router, loss = self.checkpointed(SPEC, reentrant=False, level="parameters")
        router.remove()
        with pytest.raises(torch.utils.checkpoint.CheckpointError):
            loss.backward()

    @pytest.mark.parametrize("ablated", [False, True])
    def test_another_with_units_that_were_off_is_warned_of(self, ablated):
        quiet = gr.RoutingSpec.one_per_label(3, silent="others")
        _, router, loss = self.checkpointed(SPEC if ablated else quiet, reentrant=False, ablated=ablated)
        with pytest.warns(gr.UnroutedWarning, match="removed while activation checkpointing is still to run"):
            router.remove()
        del loss

    @pytest.mark.filterwarnings("error::gradroute.UnroutedWarning")
    @pytest.mark.parametrize("after", ["backward", "the graph is gone"])
    def test_nothing_is_said_of_a_pass_that_nobody_runs_again(self, after):
        quiet = gr.RoutingSpec.one_per_label(3, silent="others")
        _, router, loss = self.checkpointed(quiet, reentrant=False)
        if after == "backward":
            loss.backward()
        else:
            del loss
        router.remove()
