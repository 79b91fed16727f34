"""Level "parameters" on modules that read a parameter past its name: what stands in for it would not be read."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import gradroute as gr
from gradroute._torch_private import FUNCTIONS_COMPILE
from gradroute.errors import UsageError
from gradroute.router._past_itself import holds_itself
from unit.router.unknown import RETAIN, SPEC, WIDTH, Projected

REFUSED = "reads? a parameter of its own by another"


class Keeps(Projected):
    """Reads its weight in a list, from some pass on, or in large batches only."""

    reads = "kept"

    def __init__(self):
        super().__init__()
        self.kept = [self.projection.weight]

    def forward(self, x):
        past = self.reads == "kept" or (self.reads == "for large batches" and len(x) > 5)
        return F.linear(x, self.kept[0] if past else self.projection.weight).tanh()


def test_a_parameter_that_is_read_past_its_own_name_is_refused():
    """What stands in for it would not be read, so that it would learn from all."""
    module = Keeps()
    router = gr.Router(module, {"": gr.Site(SPEC, level="parameters")})
    for _ in range(2):
        with router(RETAIN), pytest.raises(UsageError, match="Keeps reads a parameter of its own by another"):
            module(torch.randn(5, 3))


def test_a_parameter_that_is_used_upstream_too_is_not():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = Projected()

        def forward(self, x):
            return self.inner(F.linear(x, self.inner.projection.weight)[:, :3])

    model = Tied()
    with gr.Router(model, {"inner": gr.Site(SPEC, level="parameters")})(RETAIN):
        model(torch.randn(5, 3)).sum().backward()
    assert model.inner.projection.bias.grad[3] == 0


def test_is_refused_before_as_many_passes_again_where_it_begins_late():
    module = Keeps()
    module.reads = "its own"
    router = gr.Router(module, {"": gr.Site(SPEC, level="parameters")})

    def run(passes):
        for _ in range(passes):
            module.zero_grad()
            with router(RETAIN):
                module(torch.randn(5, 3)).sum().backward()

    run(6)
    assert not module.projection.weight.grad[3].any()
    module.reads = "kept"
    with pytest.raises(UsageError, match=REFUSED):
        run(6)
    with pytest.raises(UsageError, match=REFUSED):  # and from then on
        run(1)
    module.reads = "its own"
    run(2)


def test_is_refused_where_it_hangs_on_what_comes_in():
    module = Keeps()
    module.reads = "for large batches"
    router = gr.Router(module, {"": gr.Site(SPEC, level="parameters")})
    with router(RETAIN):
        module(torch.randn(5, 3))
    with router(torch.zeros(6, dtype=torch.long)), pytest.raises(UsageError, match=REFUSED):
        module(torch.randn(6, 3))


SQUARE = gr.RoutingSpec.one_per_label(3)


def test_is_refused_in_the_two_runs_of_a_site_on_the_input():
    module = Keeps()
    site = gr.Site(SQUARE, on="input", level="parameters")
    with gr.Router(module, {"": site})(RETAIN), pytest.raises(UsageError, match=REFUSED):
        module(torch.randn(5, 3))
    module = Projected()
    with gr.Router(module, {"": site})(RETAIN):
        module(torch.randn(5, 3, requires_grad=True) * 1).sum().backward()
    assert module.projection.weight.grad[:, 0].all()
    assert not module.projection.weight.grad[:, 1:].any()


@pytest.mark.parametrize("on", ["output", "input"])
def test_is_refused_where_there_is_no_graph_to_look_at(on):
    site = gr.Site(SQUARE if on == "input" else SPEC, on=on, level="parameters")
    module = Keeps()
    router = gr.Router(module, {"": site})
    with router(torch.tensor(0)), pytest.raises(UsageError, match=REFUSED):
        torch.vmap(module)(torch.randn(5, 3))
    of_compiled = REFUSED if FUNCTIONS_COMPILE else None  # before, Dynamo keeps the words of an error to itself
    with router(RETAIN), pytest.raises(Exception, match=of_compiled):
        torch.compile(module, backend="eager", fullgraph=True)(torch.randn(5, 3))


def test_what_holds_a_parameter_beside_its_name_may_read_it_there():
    assert holds_itself(Keeps())
    assert holds_itself(nn.Sequential(nn.ReLU(), Keeps()))
    nested = Projected()
    nested.groups = {"decayed": [(nested.projection.weight, 0.1)]}
    assert holds_itself(nested)


def test_what_holds_other_tensors_and_modules_does_not():
    held = Projected()
    held.order, held.kept = [held.projection], [torch.ones(WIDTH), nn.Parameter(torch.ones(WIDTH))]
    tied = Projected()
    tied.again = tied.projection.weight
    for module in (held, tied, nn.LSTM(3, WIDTH), nn.MultiheadAttention(WIDTH, 2), nn.ParameterList([torch.ones(1)])):
        assert not holds_itself(module)


@pytest.mark.parametrize("on", ["output", "input"])
def test_a_parameter_that_is_made_in_the_forward_pass_is_refused_in_it_and_routed_later(on):
    """Nothing could stand in for it."""

    class Lazy(Projected):
        def __init__(self):
            super().__init__()
            self.weight = None

        def forward(self, x):
            if self.weight is None:
                self.weight = nn.Parameter(torch.ones(WIDTH, x.shape[-1]))
            return super().forward(x) + F.linear(x, self.weight)

    module = Lazy()
    spec = SPEC if on == "output" else gr.RoutingSpec({"retain": [0, 1], "forget": 2}, 3)
    router = gr.Router(module, {"": gr.Site(spec, on=on, level="parameters")})
    with router(RETAIN), pytest.raises(UsageError, match=r"made parameters in its forward pass .'weight'."):
        module(torch.randn(5, 3))
    with router(RETAIN):
        module(torch.randn(5, 3)).sum().backward()
    assert module.weight.grad.any()
    assert not (module.weight.grad[3] if on == "output" else module.weight.grad[:, 2]).any()
