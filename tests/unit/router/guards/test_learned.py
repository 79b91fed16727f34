"""Whether the parameters of a site learned in a block, and by what: a bypass, or the graph of an earlier block."""

import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

import gradroute as gr

SPEC = gr.RoutingSpec({"retain": [0, 1, 2], "forget": 3}, 4)
RETAIN, FORGET = torch.zeros(2, dtype=torch.long), torch.ones(2, dtype=torch.long)
BYPASSED = "got gradients from a `with router.labels.` block in which their modules were not called"
X = torch.tensor([[1.0, 2.0, 3.0], [-1.0, 0.5, 2.0]])


def experts():
    torch.manual_seed(0)
    return nn.ModuleList([nn.Linear(3, 4), nn.Linear(3, 4)])


def around(layer):
    return F.linear(X, layer.weight, layer.bias)


def stepped_in_backward(model):
    """An optimizer that steps as each gradient is there, and leaves none."""
    for parameter in model.parameters():
        optimizer = torch.optim.SGD([parameter], lr=0.1)

        def step(_, optimizer=optimizer):
            optimizer.step()
            optimizer.zero_grad()

        parameter.register_post_accumulate_grad_hook(step)
    return lambda: None


def stepped_and_zeroed(model, set_to_none):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def after():
        optimizer.step()
        optimizer.zero_grad(set_to_none=set_to_none)

    return after


AFTERWARDS = {
    "gradients stay": lambda model: lambda: None,
    "zero_grad": lambda model: stepped_and_zeroed(model, set_to_none=True),
    "zeroed in place": lambda model: stepped_and_zeroed(model, set_to_none=False),
    "stepped in backward": stepped_in_backward,
}


@pytest.mark.parametrize("level", ["activations", "parameters"])
@pytest.mark.parametrize("afterwards", AFTERWARDS)
def test_a_bypass_is_seen_whatever_the_block_does_to_gradients_then(afterwards, level):
    """The second at the latest, also where the site runs in between."""
    model = experts()
    router = gr.Router(model, {"*": gr.Site(SPEC, level=level)})
    after = AFTERWARDS[afterwards](model)

    def step(run):
        with router(RETAIN):
            run(model[0]).square().sum().backward()
            after()

    def call(layer):
        return layer(X) + model[1](X)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        step(call)
    before = model[0].weight[3].clone()
    with pytest.warns(gr.UnroutedWarning, match=BYPASSED):
        for run in (around, call, around):
            step(run)
    gradient = model[0].weight.grad
    moved = not torch.equal(before, model[0].weight[3])
    assert moved or gradient[3].any()  # and so there was something to be seen


@pytest.mark.parametrize("backward", ["in the block", "after it"])
def test_a_graph_that_somebody_keeps_hides_no_bypass(backward):
    model = experts()
    router = gr.Router(model, {"*": SPEC})
    with router(RETAIN):
        kept = model[0](X) + model[1](X)
    with pytest.warns(gr.UnroutedWarning, match=BYPASSED):
        with router(RETAIN):
            loss = around(model[0]).sum()
            if backward == "in the block":
                loss.backward()
        if backward == "after it":
            loss.backward()
    assert kept.requires_grad


@pytest.mark.filterwarnings("error::gradroute.UnroutedWarning", "ignore:Using backward.. with create_graph")
@pytest.mark.parametrize("level", ["activations", "parameters"])
@pytest.mark.parametrize("on", ["output", "input"])
@pytest.mark.parametrize("create_graph", [False, True])
@pytest.mark.parametrize("layer", [lambda: nn.Linear(3, 4), lambda: nn.Sequential(nn.Linear(3, 4), nn.Tanh())])
def test_what_an_earlier_block_or_one_around_has_routed_is_no_bypass(layer, create_graph, on, level):
    """However often backward goes through it: each block may be another."""
    model = nn.ModuleList([layer(), layer()])
    spec = SPEC if on == "output" else gr.RoutingSpec({"retain": [0, 1], "forget": 2}, 3)
    router = gr.Router(model, {"[01]": gr.Site(spec, on=on, level=level)})
    x = X.clone().requires_grad_()
    with router(RETAIN):
        loss = (model[0](x) + model[1](x)).square().sum()
        with router(FORGET):
            loss.backward(retain_graph=True, create_graph=create_graph)
    model.zero_grad()
    with router(FORGET):
        loss.backward(retain_graph=True, create_graph=create_graph)
        model.zero_grad()
        loss.backward(retain_graph=True, create_graph=create_graph)
    loss.backward(create_graph=create_graph)
    for parameter in model.parameters():
        parameter.grad = None  # which create_graph makes a cycle of


@pytest.mark.filterwarnings("error")
def test_parameters_that_are_swapped_for_others_are_found():
    model = experts()
    router = gr.Router(model, {"*": SPEC})
    with router(RETAIN):
        (model[0](X) + model[1](X)).sum().backward()
    model.zero_grad()
    before = torch.__future__.get_swap_module_params_on_conversion()
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        model.double()
    finally:
        torch.__future__.set_swap_module_params_on_conversion(before)
    with router(RETAIN):
        model[0](X.double()).sum().backward()
    assert model[0].weight.grad[:3].any()
    assert not model[0].weight.grad[3].any()
    with pytest.warns(gr.UnroutedWarning, match=BYPASSED), router(RETAIN):
        F.linear(X.double(), model[1].weight).sum().backward()


STEPS = st.fixed_dictionaries(
    {
        "run": st.sets(st.integers(0, 1)),
        "around": st.sampled_from([None, None, None, 0, 1]),
        "backward": st.sampled_from(["in the block", "after it", "never"]),
        "again": st.booleans(),
        "zero": st.sampled_from([None, "to none", "in place"]),
    }
)


@settings(max_examples=60, deadline=None)
@given(st.lists(STEPS, min_size=1, max_size=6))
def test_a_bypass_is_warned_of_and_nothing_else_is(steps):
    """A first one whose gradient is gone by the end of its block may not be."""
    model, kept, seen, left_out = experts(), [], set(), set()
    router = gr.Router(model, {"*": SPEC})
    with router(RETAIN):  # both have run
        (model[0](X) + model[1](X)).sum().backward()

    def backward(losses):
        for loss in losses:
            loss.backward(retain_graph=True)

    for step in steps:
        gone_around = step["around"] if step["backward"] != "never" else None
        expected = gone_around is not None and gone_around not in step["run"]
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            with router(RETAIN):
                losses = [sum(model[i](X).square().sum() for i in step["run"])] if step["run"] else []
                routed = list(losses)
                if step["around"] is not None:
                    losses.append(around(model[step["around"]]).square().sum())
                if step["again"]:
                    backward(kept)
                if step["backward"] == "in the block":
                    backward(losses)
                if step["zero"] is not None:
                    model.zero_grad(set_to_none=step["zero"] == "to none")
            if step["backward"] == "after it":
                backward(losses)
        if caught:
            assert expected
            seen.add(gone_around)
        elif expected:
            gone = step["zero"] is not None and step["backward"] == "in the block" and gone_around not in left_out
            # Beside the graph of an earlier block, and said before, nothing more is to be said.
            assert gone or gone_around in seen or (step["again"] and gone_around not in left_out)
        left_out |= {0, 1} - step["run"]
        kept += routed
