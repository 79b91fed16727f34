"""Compiled code asks the guards each time that it runs."""

import contextlib
import warnings

import pytest
import torch
import torch.utils.checkpoint
from torch import nn

import gradroute as gr
from composition.backends import EachBackend
from gradroute.router._attachment import attachment_of

pytestmark = pytest.mark.long

SPEC = gr.RoutingSpec.one_per_label(3)
LABELS = torch.tensor([0, 1])


@pytest.fixture(autouse=True)
def _nothing_compiled_before():
    torch._dynamo.reset()


@pytest.mark.parametrize("level", ["activations", "parameters"])
def test_the_sites_that_run_are_noted_each_time_and_no_others(level):
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    router = gr.Router(model, {"*": gr.Site(SPEC, level=level)})
    state = attachment_of(router).state
    backends = EachBackend("eager", "aot_eager", "inductor")
    first = torch.compile(model[0], backend=backends, fullgraph=True)
    for _ in backends.each():
        for _ in range(2):
            with router(LABELS):
                assert state.ran == set()
                h = first(torch.ones(2, 3))
                assert state.ran == {0}
                model[1](h).sum().backward()
        with torch.no_grad(), router(LABELS):
            first(torch.ones(2, 3))
            assert state.ran == {0}


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("kind", [torch.bool, torch.float32])
def test_labels_of_a_block_in_compiled_code_hold_for_a_module_that_is_not_compiled(kind, backend):
    """Whatever is written to them before or after: compiled code asks nobody how often they were written to."""

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(2, 3, bias=False)

        @torch.compiler.disable
        def forward(self, x):
            return self.layer(x)

    model = Model()
    router = gr.Router(model, {"layer": SPEC})

    @torch.compile(backend=backend)
    def loss(x, labels):
        with router(labels):
            return model(x).sum()

    buffer = torch.eye(3).to(kind)[LABELS]
    buffer.copy_(buffer.clone())
    for _ in range(2):
        model.zero_grad()
        result = loss(torch.ones(2, 2), buffer)
        before = buffer.clone()
        buffer.copy_(torch.eye(3).to(kind)[[2, 2]])
        result.backward()
        assert torch.equal(model.layer.weight.grad, torch.tensor([[1.0, 1.0], [1.0, 1.0], [0.0, 0.0]]))
        buffer.copy_(before)


class TestSitesThatCompiledCodeGoesAround:
    @pytest.fixture(params=["activations", "parameters"])
    def model(self, request):
        model = nn.ModuleDict({"site": nn.Linear(3, 3), "other": nn.Linear(3, 3)})
        return model, gr.Router(model, {"*": gr.Site(SPEC, level=request.param)})

    @pytest.mark.parametrize("backward", ["in the block", "after it", "after it, then zeroed"])
    def test_warn(self, model, backward):
        model, router = model
        compiled = torch.compile(model["site"], backend="aot_eager")
        around = torch.compile(lambda x: nn.functional.linear(x, model["site"].weight), backend="aot_eager")

        def learn(run):
            with router(LABELS):
                loss = (run(torch.ones(2, 3)) + model["other"](torch.ones(2, 3))).sum()
                if backward == "in the block":
                    loss.backward()
            if backward != "in the block":
                loss.backward()
            if "zeroed" in backward:
                model.zero_grad()

        learn(compiled)
        with pytest.warns(gr.UnroutedWarning, match="got gradients"):
            for _ in range(2 if "zeroed" in backward else 1):  # the first may be those of the pass before
                learn(around)

    @pytest.mark.parametrize("backward", ["in the second block", "after both"])
    def test_do_not_warn_where_the_gradients_are_those_of_an_earlier_block(self, model, backward, recwarn):
        model, router = model
        compiled = torch.compile(model["site"], backend="aot_eager")
        for _ in range(3):
            with router(LABELS):
                loss = compiled(torch.ones(2, 3)).sum()
            with router(LABELS):
                loss = loss + model["other"](torch.ones(2, 3)).sum()
                if backward == "in the second block":
                    loss.backward()
            if backward == "after both":
                loss.backward()
            model.zero_grad()
        assert not [one for one in recwarn if "got gradients" in str(one.message)]


@pytest.mark.parametrize("level", ["activations", "parameters"])
def test_a_block_that_is_part_of_the_code_is_no_business_of_what_the_router_holds(level):
    """Checkpointed in a block of other labels, it has its own."""
    model = nn.Linear(3, 3)
    router = gr.Router(model, {"": gr.Site(SPEC, level=level)})

    def run(x, labels):
        with router(labels):
            return model(x).sum()

    x = torch.ones(2, 3, requires_grad=True)
    backends = EachBackend("eager", "aot_eager")
    compiled = torch.compile(run, backend=backends)
    for _ in backends.each():
        loss = torch.utils.checkpoint.checkpoint(compiled, x, LABELS, use_reentrant=False)
        with router(torch.tensor([2, 2])):
            loss.backward()
        assert model.bias.grad.tolist() == [1, 1, 0]
        model.zero_grad()


@pytest.mark.parametrize("level", ["activations", "parameters"])
@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("labeled", [False, True], ids=["unlabeled", "labeled"])
def test_recomputed_under_what_it_first_ran_under_or_refused(labeled, reentrant, level):
    model = nn.Linear(3, 3)
    router = gr.Router(model, {"": gr.Site(SPEC, level=level)})
    backends = EachBackend("eager", "aot_eager", "inductor")
    compiled = torch.compile(model, backend=backends, fullgraph=True)
    x = torch.ones(2, 3, requires_grad=True)

    def block(labels):
        return router(labels) if labels is not None else contextlib.nullcontext()

    def loss():
        return torch.utils.checkpoint.checkpoint(compiled, x, use_reentrant=reentrant).sum()

    first = LABELS if labeled else None
    for _ in backends.each():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", gr.UnroutedWarning)
            with block(first):
                loss().backward()
            assert model.bias.grad.tolist() == ([1, 1, 0] if labeled else [2, 2, 2])
            model.zero_grad()
            for other in (None, torch.tensor([2, 2])):
                if first is other:
                    continue
                with block(first):
                    waiting = loss()
                with block(other):
                    try:
                        waiting.backward()
                    except (gr.RoutingError, torch.utils.checkpoint.CheckpointError):
                        assert model.bias.grad is None
                    else:  # it had all tensors that it needed before it came to the site
                        assert not labeled
                        assert not reentrant
                        assert model.bias.grad.tolist() == [2, 2, 2]
                model.zero_grad()


def test_a_program_that_is_exported_asks_nobody():
    model = nn.Linear(3, 3)
    gr.Router(model, {"": SPEC})
    program = torch.export.export(model.eval(), (torch.ones(2, 3),))
    assert "gradroute" not in str(program.graph)


def test_a_missing_label_is_said_once_for_all_that_is_compiled():
    model = nn.Linear(3, 3)
    gr.Router(model, {"": SPEC})
    compiled = torch.compile(model, backend="eager", dynamic=False)
    with pytest.warns(gr.UnroutedWarning, match="no labels set") as said:
        for size in (2, 3, 4):
            compiled(torch.ones(size, 3)).sum().backward()
    assert len([one for one in said if issubclass(one.category, gr.UnroutedWarning)]) == 1


@pytest.mark.filterwarnings("error")
def test_nothing_is_said_of_evaluation():
    model = nn.Linear(3, 3)
    gr.Router(model, {"": SPEC})
    with torch.no_grad():
        torch.compile(model, backend="eager")(torch.ones(2, 3))
    torch.compile(model.eval(), backend="eager")(torch.ones(2, 3))
