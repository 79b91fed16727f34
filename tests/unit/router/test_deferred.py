"""`Later`: labels that are set after the forward pass, in every order in which things can then happen."""

import contextlib
import gc
import threading
import warnings
import weakref

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import gradroute as gr
from gradroute.errors import LabelError, UsageError
from unit.router.small import LABELS, SPEC, UNLABELED, mlp

OTHERS = torch.tensor([1, 1])
NOT_SET = r"labels were not set, .*Call later\.set\(labels\) before backward"


def bias(model, layer=0):
    return model[layer].bias.grad


@pytest.fixture(params=["activations", "parameters"])
def level(request):
    return request.param


@pytest.fixture
def routed(level):
    torch.manual_seed(0)
    model = mlp()
    return model, gr.Router(model, {"0": gr.Site(SPEC, level=level)})


def loss_of(model, x=None):
    return model(torch.ones(2, 2) if x is None else x).square().sum()


def expected(model, router, labels, x=None):
    model.zero_grad()
    with router(labels):
        loss_of(model, x).backward()
    found = [parameter.grad for parameter in model.parameters()]
    model.zero_grad()
    return found


def assert_learned(model, wanted):
    assert all(torch.equal(parameter.grad, one) for parameter, one in zip(model.parameters(), wanted, strict=True))


class TestSet:
    def test_takes_one_tensor_or_a_mapping_and_shows_its_copy(self):
        model = mlp()
        router = gr.Router(model, {"0": SPEC, "1": SPEC})
        for given in (LABELS, {"0": LABELS, "1": OTHERS}):
            wanted = expected(model, router, given)
            with router.deferred() as later:
                assert router.labels is None
                assert repr(later) == "<labels of a deferred block: not set>"
                loss = loss_of(model)
                later.set(given)
                shown = router.labels
            shown = {"": shown} if given is LABELS else shown
            for pattern, tensor in shown.items():
                assert torch.equal(tensor, given if given is LABELS else given[pattern])
            assert repr(later) == "<labels of a deferred block: set>"
            loss.backward()
            assert_learned(model, wanted)
            model.zero_grad()

    def test_passes_of_the_block_after_it_are_routed_too_and_checked_at_once(self, routed):
        model, router = routed
        wanted = expected(model, router, LABELS)
        with router.deferred() as later:
            later.set(LABELS)
            loss_of(model).backward()
            with pytest.raises(LabelError, match="site '0': labels of shape"):
                model(torch.ones(3, 2))
        assert_learned(model, wanted)

    def test_is_refused_a_second_time(self, routed):
        model, router = routed
        with router.deferred() as later:
            loss = loss_of(model)
        later.set(LABELS)
        with pytest.raises(UsageError, match=r"set already.*run the forward pass again"):
            later.set(LABELS)
        with pytest.raises(UsageError, match="set already"):
            later.set(OTHERS)
        loss.backward()
        wanted = [parameter.grad.clone() for parameter in model.parameters()]
        assert all(map(torch.equal, wanted, expected(model, router, LABELS)))

    def test_copies(self, routed):
        model, router = routed
        wanted = expected(model, router, LABELS)
        given = LABELS.clone()
        with router.deferred() as later:
            loss = loss_of(model)
        later.set(given)
        given.fill_(1)
        given.data.fill_(1)
        loss.backward()
        assert_learned(model, wanted)

    @pytest.mark.parametrize("labels", [torch.tensor([0, 1, 2]), torch.tensor([0, 3]), [0, 1], None, {"1": LABELS}])
    def test_of_labels_that_do_not_fit_sets_none(self, routed, labels):
        model, router = routed
        with router.deferred() as later:
            loss = loss_of(model)
        with pytest.raises(LabelError):
            later.set(labels)
        assert later.labels is None
        with pytest.raises(UsageError, match=NOT_SET):
            loss.backward(retain_graph=True)
        model.zero_grad()
        later.set(LABELS)
        loss.backward()
        wanted = [parameter.grad for parameter in model.parameters()]
        assert all(map(torch.equal, wanted, expected(model, router, LABELS)))

    def test_checks_every_shape_that_ran_by_the_name_of_its_site(self):
        model = nn.ModuleList([nn.Linear(2, 3), nn.Linear(2, 3)])
        router = gr.Router(model, {"*": SPEC})
        with router.deferred() as later:
            model[0](torch.ones(2, 2))
            model[1](torch.ones(2, 2))
            model[1](torch.ones(4, 2))
        with pytest.raises(LabelError, match=r"site '1': labels of shape \(2,\) do not fit a tensor of shape \(4, 3\)"):
            later.set(LABELS)

    def test_checks_what_needs_no_labels_in_the_forward_pass(self):
        model = nn.Linear(2, 4)
        router = gr.Router(model, {"": SPEC})
        with router.deferred(), pytest.raises(LabelError, match="site '': the spec routes 3 units, but"):
            model(torch.ones(2, 2))

    def test_holds_labels_per_example_against_what_has_time_first(self):
        gru = nn.GRU(2, 3)
        router = gr.Router(gru, {"": gr.Site(SPEC, index=0)})
        with router.deferred() as later:
            gru(torch.ones(2, 2, 2))
        with pytest.raises(LabelError, match="time or layers, not the batch"):
            later.set(LABELS)

    def test_refuses_labels_without_values(self, routed):
        model, router = routed
        with router.deferred() as later:
            model(torch.ones(2, 2))
        with pytest.raises(LabelError, match="site '0': labels are on the meta device"):
            later.set(LABELS.to("meta"))

    def test_in_inference_mode_serves_a_graph_that_is_derived_twice(self, routed):
        model, router = routed
        x = torch.ones(2, 2, requires_grad=True)
        with router.deferred() as later:
            loss = loss_of(model, x)
        with torch.inference_mode():
            later.set(LABELS.clone())
        (gradient,) = torch.autograd.grad(loss, x, create_graph=True)
        gradient.square().sum().backward()
        found = model[0].weight.grad.clone()
        model.zero_grad()
        with router(LABELS):
            (gradient,) = torch.autograd.grad(loss_of(model, x), x, create_graph=True)
        gradient.square().sum().backward()
        assert torch.equal(found, model[0].weight.grad)

    def test_is_refused_inside_of_a_transform(self, routed):
        _, router = routed
        with router.deferred() as later:
            pass
        with pytest.raises(UsageError, match="neither compiled nor transformed"):
            torch.func.vmap(lambda labels: (later.set(labels), labels)[1])(LABELS)

    @pytest.mark.parametrize("of", ["an empty block", "a graph that is gone"])
    def test_on_nothing_is_allowed(self, routed, of):
        model, router = routed
        with router.deferred() as later:
            loss = loss_of(model) if of != "an empty block" else None
        del loss
        later.set(LABELS)

    def test_still_counts_after_the_router_was_removed(self, routed):
        model, router = routed
        wanted = expected(model, router, LABELS)
        with router.deferred() as later:
            loss = loss_of(model)
        router.remove()
        later.set(LABELS)
        loss.backward()
        assert_learned(model, wanted)


class TestBackward:
    def test_without_labels_raises_whoever_asks(self, routed):
        model, router = routed
        with router.deferred() as later:
            loss = loss_of(model)
            with pytest.raises(UsageError, match=NOT_SET):
                loss.backward(retain_graph=True)
        with pytest.raises(UsageError, match=NOT_SET):
            loss.backward(retain_graph=True)
        with pytest.raises(UsageError, match=NOT_SET):
            torch.autograd.grad(loss, list(model.parameters()), retain_graph=True)
        with pytest.raises(UsageError, match=NOT_SET):
            torch.autograd.grad(loss, list(model.parameters()), create_graph=True)
        with router(LABELS), pytest.raises(UsageError, match=NOT_SET):
            loss.backward(retain_graph=True)
        del later  # dropped: nobody can set them any more
        with pytest.raises(UsageError, match=NOT_SET):
            loss.backward()
        assert model[0].bias.grad is None

    def test_after_the_labels_may_come_again_where_the_graph_is_kept(self, routed):
        model, router = routed
        wanted = expected(model, router, LABELS)
        with router.deferred() as later:
            loss = loss_of(model)
        with pytest.raises(UsageError, match=NOT_SET):
            loss.backward(retain_graph=True)
        model.zero_grad()
        later.set(LABELS)
        for _ in range(2):
            loss.backward(retain_graph=True)
        assert_learned(model, [2 * one for one in wanted])

    def test_in_another_thread(self, routed):
        model, router = routed
        wanted = expected(model, router, LABELS)
        with router.deferred() as later:
            loss = loss_of(model)

        def judge_and_learn():
            later.set(LABELS)
            loss.backward()

        thread = threading.Thread(target=judge_and_learn)
        thread.start()
        thread.join()
        assert_learned(model, wanted)

    def test_is_not_missed_in_evaluation(self, routed):
        model, router = routed
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            for context in (torch.no_grad, contextlib.nullcontext):
                with context(), router.deferred():
                    model(torch.ones(2, 2))
            with router(LABELS):
                loss_of(model).backward()


class TestBlocks:
    def test_nest_in_each_other_and_in_blocks_of_labels(self, routed):
        model, router = routed
        of_labels, of_others = expected(model, router, LABELS), expected(model, router, OTHERS)
        with router.deferred() as outer:
            with router.deferred() as inner:
                first = loss_of(model)
            with router(OTHERS) as entered:
                assert entered is router
                assert router.labels is OTHERS
                loss_of(model).backward()
            assert_learned(model, of_others)
            model.zero_grad()
            second = loss_of(model)
        with router(OTHERS), router.deferred() as inside:
            third = loss_of(model)
        inner.set(LABELS)
        outer.set(OTHERS)
        inside.set(LABELS)
        for loss, wanted in ((first, of_labels), (second, of_others), (third, of_labels)):
            loss.backward()
            assert_learned(model, wanted)
            model.zero_grad()

    def test_can_be_entered_again_each_time_with_labels_of_its_own(self, routed):
        model, router = routed
        block = router.deferred()
        with block as first:
            one = loss_of(model)
            with block as second:
                two = loss_of(model)
            three = loss_of(model)
        assert first is not second
        first.set(LABELS)
        second.set(OTHERS)
        assert repr(block) == "<with router.deferred()>"
        for loss, labels in ((one, LABELS), (two, OTHERS), (three, LABELS)):
            model.zero_grad()
            loss.backward()
            found = [parameter.grad for parameter in model.parameters()]
            assert all(map(torch.equal, found, expected(model, router, labels)))

    def test_compose_with_ablation_around_and_inside(self, routed):
        model, router = routed
        for order in ("around", "inside"):
            with contextlib.ExitStack() as stack:
                if order == "around":
                    stack.enter_context(router.ablated(0))
                later = stack.enter_context(router.deferred())
                if order == "inside":
                    stack.enter_context(router.ablated(0))
                loss = loss_of(model)
            later.set(LABELS)
            model.zero_grad()
            loss.backward()
            found = [parameter.grad for parameter in model.parameters()]
            model.zero_grad()
            with router.ablated(0), router(LABELS):
                loss_of(model).backward()
            assert_learned(model, found)

    def test_that_end_in_an_error_leave_what_ran_in_them_to_be_labeled(self, routed):
        model, router = routed
        wanted = expected(model, router, LABELS)
        with contextlib.suppress(KeyError), router.deferred() as later:
            loss = loss_of(model)
            raise KeyError
        assert router.labels is None
        with pytest.raises(UsageError, match=NOT_SET):
            loss.backward(retain_graph=True)
        model.zero_grad()
        later.set(LABELS)
        loss.backward()
        assert_learned(model, wanted)

    def test_that_overlap_are_refused(self, routed):
        _, router = routed
        first, second = router.deferred(), router.deferred()
        first.__enter__()
        second.__enter__()
        with pytest.raises(UsageError, match="blocks of one router overlapped"):
            first.__exit__(None, None, None)

    def test_of_two_routers_wait_for_the_labels_of_both(self):
        model = mlp()
        one, other = gr.Router(model, {"0": SPEC}), gr.Router(model, {"1": SPEC})
        with one.deferred() as first, other.deferred() as second:
            loss = loss_of(model)
        first.set(LABELS)
        with pytest.raises(UsageError, match=NOT_SET):
            loss.backward(retain_graph=True)
        second.set(OTHERS)
        model.zero_grad()
        loss.backward()
        assert bias(model)[1] == 0
        assert bias(model, 1)[[0, 2]].eq(0).all()

    def test_hold_no_graph_and_no_tensor_that_was_routed(self, routed):
        model, router = routed
        with router.deferred() as later:
            y = model[0](torch.ones(2, 2))
        kept = weakref.ref(y)
        del y
        gc.collect()
        assert kept() is None
        later.set(LABELS)

    def test_of_which_nothing_is_left_keep_no_mask_that_is_waited_for(self, routed):
        """A site that is gone around is noticed only while no earlier graph waits for its backward pass."""
        model, router = routed
        with router.deferred() as later:
            model(torch.ones(2, 2))
        with pytest.warns(gr.UnroutedWarning, match="got gradients"), router(LABELS):
            nn.functional.linear(torch.ones(2, 2), model[0].weight, model[0].bias).sum().backward()
        assert later.labels is None


class TestCheckpointing:
    @pytest.mark.parametrize("reentrant", [False, True])
    def test_recomputes_by_the_labels_that_were_set_in_the_block(self, routed, reentrant):
        model, router = routed
        x = torch.ones(2, 2, requires_grad=True)
        wanted = expected(model, router, LABELS)
        with router.deferred() as later:
            loss = checkpoint(model, x, use_reentrant=reentrant).square().sum()
            later.set(LABELS)
            loss.backward()
        assert_learned(model, wanted)

    @pytest.mark.parametrize("after", ["after it", "in another block"])
    def test_after_the_block_needs_no_reentry(self, routed, after):
        model, router = routed
        x = torch.ones(2, 2, requires_grad=True)
        wanted = expected(model, router, LABELS)
        around = contextlib.nullcontext if after == "after it" else router.deferred
        for reentrant in (False, True):
            model.zero_grad()
            with router.deferred() as later:
                loss = checkpoint(model, x, use_reentrant=reentrant).square().sum()
            later.set(LABELS)
            with around():
                if reentrant:
                    with pytest.raises(UsageError, match="does not hold the labels that it first ran under"):
                        loss.backward()
                else:
                    loss.backward()
                    assert_learned(model, wanted)

    @pytest.mark.parametrize("reentrant", [False, True])
    def test_without_labels_raises(self, routed, reentrant):
        model, router = routed
        x = torch.ones(2, 2, requires_grad=True)
        with router.deferred():
            loss = checkpoint(model, x, use_reentrant=reentrant).square().sum()
            with pytest.raises(UsageError, match=NOT_SET):
                loss.backward()
        assert model[0].bias.grad is None

    def test_labels_are_held_against_a_reentrant_first_pass(self):
        model = mlp()
        router = gr.Router(model, {"0": SPEC})
        with router.deferred() as later:
            checkpoint(model, torch.ones(2, 2, requires_grad=True), use_reentrant=True)
            with pytest.raises(LabelError, match="site '0': labels of shape"):
                later.set(torch.tensor([0, 1, 2]))


class TestWhereLabelsMustBeKnown:
    def test_a_module_of_an_unknown_kind_with_its_input_routed(self):
        model = nn.Sequential(nn.Sequential(nn.Linear(3, 3)))
        router = gr.Router(model, {"0": gr.Site(SPEC, level="parameters", on="input")})
        with router.deferred() as later:
            with pytest.raises(UsageError, match=r"site '0': labels come too late.*Put sites on the layers inside"):
                model(torch.ones(2, 3))
            later.set(LABELS)
            model(torch.ones(2, 3)).sum().backward()
        found = model[0][0].weight.grad.clone()
        model.zero_grad()
        with router(LABELS):
            model(torch.ones(2, 3)).sum().backward()
        assert torch.equal(found, model[0][0].weight.grad)

    @pytest.mark.filterwarnings(r"ignore:`torch\.jit\.script(_method)?` is deprecated")  # by forward mode itself
    @pytest.mark.parametrize("unknown", [False, True], ids=["known", "unknown"])
    @pytest.mark.parametrize("transform", ["grad", "vmap", "jvp", "forward mode"])
    def test_transforms(self, level, unknown, transform):
        model = nn.Sequential(nn.Linear(2, 3)) if unknown else nn.Linear(2, 3)
        router = gr.Router(model, {"": gr.Site(SPEC, level=level)})
        x = torch.ones(2, 2)
        runs = {
            "grad": lambda: torch.func.grad(lambda x: model(x).sum())(x),
            "vmap": lambda: torch.func.vmap(model)(x.expand(4, 2, 2)),
            "jvp": lambda: torch.func.jvp(model, (x,), (x,)),
            "forward mode": lambda: self.forward_mode(model, x),
        }
        with (
            router.deferred(),
            pytest.raises(UsageError, match=r"site '': labels come too late.*with router\(labels\)"),
        ):
            runs[transform]()

    @staticmethod
    def forward_mode(model, x):
        with torch.autograd.forward_ad.dual_level():
            return model(torch.autograd.forward_ad.make_dual(x, x))

    @pytest.mark.parametrize("compiled_before", [False, True], ids=["", "compiled with labels before"])
    @pytest.mark.parametrize("fullgraph", [False, True])
    def test_compiled_code(self, routed, fullgraph, compiled_before):
        torch._dynamo.reset()
        model, router = routed
        compiled = torch.compile(model, backend="aot_eager", fullgraph=fullgraph)
        wanted = expected(model, router, LABELS)
        if compiled_before:
            with router(LABELS):
                loss_of(compiled)
        with router.deferred() as later:
            with pytest.raises(UsageError, match=r"site '0': labels come too late.*with router\(labels\)"):
                compiled(torch.ones(2, 2))
            with torch.compiler.set_stance("force_eager"):
                loss = loss_of(compiled)
        later.set(LABELS)
        loss.backward()
        assert_learned(model, wanted)

    def test_code_in_which_the_block_is_part_of_what_is_compiled(self, routed):
        torch._dynamo.reset()
        model, router = routed

        def step(x):
            with router.deferred() as later:
                loss = model(x).sum()
            later.set(LABELS)
            return loss

        with pytest.raises(Exception, match="cannot be part of compiled code|Unsupported|deferred"):
            torch.compile(step, backend="eager", fullgraph=True)(torch.ones(2, 2))

    @pytest.mark.parametrize("strict", [False, True])
    def test_an_exported_program(self, routed, strict):
        model, router = routed
        with router.deferred(), pytest.raises(Exception, match="labels come too late"):
            torch.export.export(model, (torch.ones(2, 2),), strict=strict)


def test_unlabeled_data_may_come_late_too(routed):
    model, router = routed
    with router.deferred() as later:
        loss = loss_of(model)
    later.set(UNLABELED)
    loss.backward()
    found = [parameter.grad for parameter in model.parameters()]
    router.remove()
    model.zero_grad()
    loss_of(model).backward()
    assert all(torch.allclose(parameter.grad, one) for parameter, one in zip(model.parameters(), found, strict=True))


def test_a_spec_with_silent_units_is_refused_whose_forward_pass_needs_the_labels():
    quiet = gr.RoutingSpec.one_per_label(3, silent="others")
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 3))
    router = gr.Router(model, {"0": gr.RoutingSpec.one_per_label(3), "1": quiet})
    with pytest.raises(UsageError, match="spec of '1' has silent units"):
        router.deferred()
