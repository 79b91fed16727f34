"""What the machine found: mended, or marked as what is left."""

import copy
import types

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import gradroute as gr
from adversary.models import build, slots
from adversary.passes import Expected, draw_input, forward, loss_of
from adversary.sites import Drawn, Route, _silence, _tensor


def test_compiled_code_that_breaks_off_between_two_runs_of_a_module():
    """Of the second run's beginning it noted nothing; in eager mode there was nothing to go back to."""
    from gradroute.router._second_run import Beginning

    module = nn.BatchNorm1d(3)
    beginning = Beginning(module)
    beginning._attributes, beginning._random = [], None  # as compiled code leaves it
    beginning.refuse_random_numbers()
    with beginning.once_more():
        assert set(beginning.buffers()) == set(dict(module.named_buffers()))


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("level", ["activations", "parameters"])
def test_a_compiled_model_in_a_checkpoint_of_eager_code_with_backward_in_another_block(level, reentrant):
    """Recomputed, it takes the labels of the block that backward is in."""
    torch._dynamo.reset()
    module = nn.Linear(3, 3)
    router = gr.Router(module, {"": gr.Site(gr.RoutingSpec.one_per_label(3), level=level)})
    compiled = torch.compile(module, backend="eager")
    with router(torch.tensor([0, 0])):
        loss = checkpoint(compiled, torch.randn(2, 3, requires_grad=True), use_reentrant=reentrant).sum()
    try:
        with router(torch.tensor([1, 1])):
            loss.backward()
    except gr.RoutingError:
        return
    assert module.bias.grad.tolist() == [2, 0, 0]


SPEC = gr.RoutingSpec({0: slice(0, 3), 1: 3}, 4)
LABELS = torch.zeros(2, dtype=torch.long)


def model_and_router(level):
    torch._dynamo.reset()
    model = nn.Sequential(nn.Linear(4, 4))
    return model, gr.Router(model, {"0": gr.Site(SPEC, level=level)})


def learn(model):
    model(torch.ones(2, 4)).sum().backward()


@pytest.mark.parametrize("compiled_before", [True, False])
def test_a_forward_that_was_replaced_is_refused_in_compiled_code(compiled_before):
    model, router = model_and_router("parameters")
    compiled = torch.compile(model, backend="eager")
    if compiled_before:
        with router(LABELS):
            learn(compiled)
    model[0].forward = types.MethodType(nn.Linear.forward, model[0])
    with pytest.raises(gr.RoutingError), router(LABELS):
        learn(compiled)


@pytest.mark.parametrize("level", ["activations", "parameters"])
def test_a_module_that_is_replaced_in_a_block_in_which_it_ran_is_refused_as_that_ends(level):
    model, router = model_and_router(level)
    block = router(LABELS)
    block.__enter__()
    learn(model)
    model[0] = nn.Linear(4, 4)
    learn(model)
    with pytest.raises(gr.RoutingError):
        block.__exit__(None, None, None)


class ChangesInPlace(nn.Module):
    """The output of a linear layer for three dimensions is a view."""

    def __init__(self):
        super().__init__()
        self.inner, self.site = nn.Linear(4, 4), nn.Identity()

    def forward(self, x):
        return torch.relu_(self.site(self.inner(x)))


def test_a_stray_copy_that_learns_in_evaluation_mode_warns_where_its_site_is_a_view_that_is_changed_in_place():
    model = ChangesInPlace()
    gr.Router(model, {"site": SPEC})
    twin = copy.deepcopy(model).eval()
    with pytest.warns(gr.UnroutedWarning):
        twin(torch.ones(2, 3, 4)).sum().backward()


@pytest.mark.parametrize("compiles", [False, True])
def test_a_shallow_copy_is_refused_in_compiled_code_as_in_eager_mode(compiles):
    """Its forward is that of the module it was copied from, on that one's parameters."""
    model, router = model_and_router("parameters")
    model[0] = copy.copy(model[0])
    model[0]._parameters = {"weight": nn.Parameter(torch.ones(4, 4)), "bias": None}
    run = torch.compile(model, backend="eager") if compiles else model
    with pytest.raises(gr.RoutingError), router(LABELS):
        learn(run)


def test_what_a_layer_reads_behind_whose_output_units_are_off_for_a_mixture():
    """The oracle forgot the mask of the output there: of the two, gradroute was right."""
    [slot] = slots(("Conv",))
    every, first, two = Route((0, 1, 2, 3), 1.0, 0.0), Route((0,), 1.0, 0.0), Route((0, 1), 1.0, 0.0)
    reads = Drawn(slot, (every, first, first), "all", "parameters", "input", _silence(176))
    writes = Drawn(slot, (every, two, first), "all", "activations", "output", _silence(410))
    labels = _tensor(torch.float32, True, 0)
    model, x = build(("Conv",)).eval(), draw_input(0)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    found = Expected.of(("Conv",), state, [reads.place(labels), writes.place(labels)], False, 0).gradients

    with gr.Router(model, {"0.inner": [reads.site(), writes.site()]})(labels):
        loss_of(forward(model, x, 0, "grad", None)).backward()

    h, layer = x.detach().transpose(1, 2), model[0].inner
    sees = torch.where(reads.place(labels).on_units(h), h, 0)
    y = layer(sees)
    goes_on = torch.where(writes.place(labels).on_units(y), y, 0)
    (grad,) = torch.autograd.grad(loss_of(goes_on.transpose(1, 2)), y)
    grad = grad * writes.place(labels).mask(y)
    by_hand = torch.einsum("bot,bit->oi", grad, sees * reads.place(labels).mask(h))[..., None]
    torch.testing.assert_close(found["0.inner.weight"], by_hand)
    torch.testing.assert_close(layer.weight.grad, by_hand)


class Doubles(nn.Module):
    """The site returns a view of what it is given, which its caller changes in place, and reads by its other name."""

    def __init__(self):
        super().__init__()
        self.first, self.site = nn.Linear(4, 4), nn.Flatten()

    def forward(self, x):
        h = self.first(x).clone()
        self.site(h).mul_(2)
        return h


@pytest.mark.parametrize("backend", [None, "eager", "aot_eager"])
def test_work_in_place_on_a_view_of_what_the_caller_holds_raises_in_compiled_code_too(backend):
    torch._dynamo.reset()
    model = Doubles()
    router = gr.Router(model, {"site": SPEC})
    run = torch.compile(model, backend=backend) if backend else model
    with router(LABELS), pytest.raises(RuntimeError, match="modified inplace"):
        learn(run)
