"""Activation checkpointing keeps the labels of each forward pass, or raises: never an unrouted or misrouted gradient."""

import contextlib
import copy
import gc
import threading
import weakref

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import gradroute as gr
from gradroute.errors import UsageError

SPEC = gr.RoutingSpec.one_per_label(3)
FIRST, SECOND = torch.tensor([0, 1, 2, 0]), torch.tensor([2, 2, 0, 1])


class Model(nn.Module):
    """A routed block that is checkpointed: not at all (None), non-reentrantly (False) or reentrantly (True)."""

    def __init__(self):
        super().__init__()
        self.before, self.after = nn.Linear(4, 5), nn.Linear(3, 1)
        self.block = nn.Sequential(nn.Linear(5, 3), nn.Tanh())
        self.reentrant = None

    def forward(self, x):
        h = self.before(x)
        h = self.block(h) if self.reentrant is None else checkpoint(self.block, h, use_reentrant=self.reentrant)
        return self.after(h).square().sum()


def routed(reentrant, level="activations"):
    torch.manual_seed(0)
    model = Model()
    model.reentrant = reentrant
    return model, gr.Router(model, {"block.0": gr.Site(SPEC, level=level)})


def gradients(model):
    return [parameter.grad for parameter in model.parameters()]


@pytest.fixture
def batches():
    return torch.randn(4, 4), torch.randn(4, 4)


@pytest.fixture
def expected(batches):
    model, router = routed(None)
    for x, labels in zip(batches, (FIRST, SECOND), strict=True):
        with router(labels):
            model(x).backward()
    return gradients(model)


@pytest.mark.parametrize("reentrant", [False, True])
def test_backward_inside_the_block_of_its_forward_pass(batches, expected, reentrant):
    model, router = routed(reentrant)
    for x, labels in zip(batches, (FIRST, SECOND), strict=True):
        with router(labels):
            model(x).backward()
    torch.testing.assert_close(gradients(model), expected)


@pytest.mark.parametrize("where", ["after both blocks", "inside the second block"])
@pytest.mark.parametrize("reentrant", [False, True])
def test_two_forward_passes_before_one_backward(batches, expected, reentrant, where):
    model, router = routed(reentrant)

    def run():
        with router(FIRST):
            first = model(batches[0])
        with router(SECOND):
            total = first + model(batches[1])
            if where == "inside the second block":
                total.backward()
        if where == "after both blocks":
            total.backward()

    if reentrant:
        with pytest.raises(UsageError, match="does not hold the labels that it first ran under.*use_reentrant=False"):
            run()
    else:
        run()
        torch.testing.assert_close(gradients(model), expected)


@pytest.mark.parametrize("reentrant", [False, True])
def test_an_ablated_pass_is_recomputed_ablated_or_raises(batches, reentrant):
    plain, plain_router = routed(None)
    with plain_router(FIRST), plain_router.ablated(0):
        plain(batches[0]).backward()
    model, router = routed(reentrant)
    with router(FIRST):
        with router.ablated(0):
            model(batches[0]).backward()
        torch.testing.assert_close(gradients(model), gradients(plain))
        with router.ablated(0):
            loss = model(batches[0])
        with pytest.raises(UsageError, match="Put backward inside the same"):
            loss.backward()


@pytest.mark.parametrize("level", ["activations", "parameters"])
@pytest.mark.parametrize("reentrant", [False, True])
def test_unlabeled_training_passes_are_left_alone(batches, reentrant, level):
    model, router = routed(reentrant, level)
    with router(FIRST):
        model(batches[0]).backward()
    twin = copy.deepcopy(Model())
    twin.load_state_dict(model.state_dict())
    model.zero_grad()
    with pytest.warns(gr.UnroutedWarning):
        model(batches[0]).backward()
    twin(batches[0]).backward()
    torch.testing.assert_close(gradients(model), gradients(twin))


def test_one_pass_may_be_recomputed_for_several_backward_passes(batches, expected):
    """Without reentry, whose graph keeps the labels; reentrant checkpointing frees its graph with the first one."""
    model, router = routed(False)
    losses = []
    for x, labels in zip(batches, (FIRST, SECOND), strict=True):
        with router(labels):
            losses.append(model(x))
    for _ in range(2):
        sum(losses).backward(retain_graph=True)
    torch.testing.assert_close(gradients(model), [2 * gradient for gradient in expected])


@pytest.mark.filterwarnings("ignore:the model ran, but the sites:gradroute.UnroutedWarning")
def test_a_pass_of_one_site_lends_no_trust_to_another():
    model = nn.ModuleList(nn.Linear(3, 3) for _ in range(2))
    router = gr.Router(model, {"*": SPEC})
    x = torch.randn(4, 3, requires_grad=True)
    with router(FIRST):
        checkpoint(model[0], x, use_reentrant=True)
    with router(SECOND):
        loss = checkpoint(model[1], x, use_reentrant=True).sum()
    with router(FIRST), pytest.raises(UsageError, match="does not hold the labels that it first ran under"):
        loss.backward()


def test_labels_by_pattern_are_held_to_those_of_the_first_pass_too(batches):
    model, router = routed(True)
    with router({"block.0": FIRST}):
        model(batches[0]).backward()
        loss = model(batches[0])
    with router({"block.0": SECOND}), pytest.raises(UsageError, match="does not hold the labels"):
        loss.backward()


def test_recomputation_in_a_thread_of_autograds_is_in_the_block_of_its_own():
    """Deep in nested backward passes, and on a GPU, autograd goes on in another thread."""
    layer = nn.Linear(3, 3)
    router = gr.Router(layer, {"": SPEC})
    threads = set()
    layer.register_forward_hook(lambda *_: threads.add(threading.get_ident()))

    def nested(x, depth):
        return checkpoint(nested, x, depth - 1, use_reentrant=True) if depth else layer(x)

    with router(FIRST):
        nested(torch.ones(4, 3, requires_grad=True), 80).sum().backward()
    assert len(threads) == 2, "this many levels must be more than autograd runs in one thread"
    assert torch.equal(layer.bias.grad, SPEC.mask(FIRST).sum(0))


def test_labels_of_an_evaluation_are_not_kept(batches):
    model, router = routed(None)
    labels = FIRST.clone()
    kept = weakref.ref(labels)
    with torch.no_grad(), router(labels):
        model(batches[0])
    del labels
    gc.collect()
    assert kept() is None


@pytest.mark.parametrize("layer", [nn.Linear(2, 3), nn.Sequential(nn.Linear(2, 3))], ids=["known", "other"])
@pytest.mark.parametrize("where", ["outside", "in a block of other labels"])
def test_sites_on_parameters_keep_the_labels_of_the_first_pass_without_reentry(layer, where):
    layer = copy.deepcopy(layer)
    spec = gr.RoutingSpec.one_per_label(3)
    router = gr.Router(layer, {"": gr.Site(spec, level="parameters")})
    labels = torch.tensor([0, 1])
    with router(labels):
        loss = checkpoint(layer, torch.ones(2, 2), use_reentrant=False).sum()
    with router(torch.tensor([2, 2])) if where == "in a block of other labels" else contextlib.nullcontext():
        loss.backward()
    bias = next(p for name, p in layer.named_parameters() if name.endswith("bias"))
    assert torch.equal(bias.grad, spec.mask(labels).sum(0))


# ------------------------------------------------------------------ passes that are no first passes


@pytest.mark.parametrize("level", ["activations", "parameters"])
def test_evaluation_passes_lend_no_trust_to_a_recomputation(batches, level):
    """A pass under no_grad is a first pass only where a Function runs it, whose backward may run it again."""
    model, router = routed(True, level)
    with router(FIRST):
        loss = model(batches[0])
    with torch.no_grad():
        model.reentrant = None
        model(batches[0])
        model.reentrant = True
    with pytest.raises(UsageError, match="does not hold the labels that it first ran under"):
        loss.backward()
    with router(FIRST):
        loss = model(batches[0])
    with router(SECOND), torch.no_grad():
        model.reentrant = None
        model(batches[0])
    with router(SECOND), pytest.raises(UsageError, match="does not hold the labels that it first ran under"):
        loss.backward()


def test_a_function_may_run_the_model_more_often_in_backward_than_in_forward():
    """As adjoint methods do."""
    layer = nn.Linear(3, 3)
    router = gr.Router(layer, {"": SPEC})

    class Adjoint(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, *parameters):
            ctx.save_for_backward(x)
            return layer(x)

        @staticmethod
        def backward(ctx, grad):
            (x,) = ctx.saved_tensors
            with torch.enable_grad():
                x = x.detach().requires_grad_()
                runs = [layer(x) for _ in range(3)]
            return torch.autograd.grad(runs, [x, *layer.parameters()], [grad / 3] * 3)

    x = torch.randn(4, 3, requires_grad=True)
    with router(FIRST):
        Adjoint.apply(x, *layer.parameters()).sum().backward()
    torch.testing.assert_close(layer.bias.grad, SPEC.mask(FIRST).sum(0))


@pytest.mark.parametrize("batch_first", [True, False])
def test_a_recurrent_layer_may_be_recomputed_outside_of_its_block(batch_first):
    gru = nn.GRU(4, 3, batch_first=batch_first)
    router = gr.Router(gru, {"": gr.Site(SPEC, index=0)})
    labels = FIRST if batch_first else FIRST.expand(5, -1)
    x = torch.randn(4, 5, 4) if batch_first else torch.randn(5, 4, 4)
    with router(labels):
        checkpoint(gru, x, use_reentrant=False)[0].sum().backward()
    expected = [p.grad.clone() for p in gru.parameters()]
    gru.zero_grad()
    with router(labels):
        loss = checkpoint(gru, x, use_reentrant=False)[0].sum()
    with router(SECOND if batch_first else SECOND.expand(5, -1)):
        loss.backward()
    torch.testing.assert_close([p.grad for p in gru.parameters()], expected)
