"""Ways in which somebody lost a mask without a word, each of which is right now, or raises, or warns.

The unit of label "forget" must learn nothing from a batch that holds "retain" alone.
"""

import asyncio
import copy
import threading
import warnings

import numpy as np
import pytest
import torch
from torch import nn

import gradroute as gr
from gradroute.errors import LabelError, SiteError, UsageError

SPEC = gr.RoutingSpec({"retain": [0, 1, 2], "forget": 3}, 4)
EVERYTHING = gr.RoutingSpec({0: slice(None)}, 4)
RETAIN, FORGET = torch.zeros(4, dtype=torch.long), torch.ones(4, dtype=torch.long)

LEVELS = pytest.mark.parametrize("level", ["activations", "parameters"])


def x():
    torch.manual_seed(1)
    return torch.randn(4, 3)


def layer():
    torch.manual_seed(0)
    return nn.Linear(3, 4)


def learned(module):
    """What unit 3 learned."""
    return 0.0 if module.weight.grad is None else float(module.weight.grad[3].abs().sum())


@pytest.fixture(autouse=True)
def _nothing_compiled_before():
    torch._dynamo.reset()


def compile_something_else():
    torch.compile(lambda a: 2 * a, backend="eager")(torch.ones(1))


# ---------------------------------------------------------------------- something compiled


def test_a_replaced_forward_is_refused_whatever_else_was_compiled():
    module = layer()
    router = gr.Router(module, {"": gr.Site(SPEC, level="parameters")})
    compile_something_else()
    module.forward = lambda x: nn.functional.linear(x, module.weight, module.bias)
    with router(RETAIN), pytest.raises(UsageError, match="forward method of this Linear was replaced"):
        module(x())


def test_a_forward_that_is_compiled_is_not_a_replaced_one():
    module = layer()
    router = gr.Router(module, {"": gr.Site(SPEC, level="parameters")})
    module.forward = torch.compile(module.forward, backend="eager")
    with router(RETAIN):
        module(x()).sum().backward()
    assert learned(module) == 0
    assert module.weight.grad[0].any()


@LEVELS
@pytest.mark.parametrize("attached", ["here", "in a task"])
def test_an_unrouted_twin_that_another_thread_compiles_lends_no_graph(level, attached):
    module, twin = layer(), layer()

    async def attach():
        return gr.Router(module, {"": gr.Site(SPEC, level=level)})

    def compile_the_twin():
        torch.compile(twin, backend="eager")(x()).sum().backward()

    if attached == "here":
        router = gr.Router(module, {"": gr.Site(SPEC, level=level)})
        thread = threading.Thread(target=compile_the_twin)
        thread.start()
        thread.join()
    else:
        router = asyncio.run(attach())
        compile_the_twin()
    with router(RETAIN):
        torch.compile(module, backend="eager")(x()).sum().backward()
    assert learned(module) == 0
    assert learned(twin) > 0


@LEVELS
def test_compiled_code_warns_of_missing_labels(level):
    module = layer()
    router = gr.Router(module, {"": gr.Site(SPEC, level=level)})
    compiled = torch.compile(module, backend="eager")
    with router(RETAIN):
        compiled(x()).sum().backward()
    with pytest.warns(gr.UnroutedWarning, match="no labels set"):
        compiled(x()).sum().backward()


def test_compiled_code_in_another_thread_has_not_the_labels_of_this_one():
    """There it is refused, as in eager mode: that batch is not routed by somebody else's labels."""
    module = layer()
    router = gr.Router(module, {"": SPEC})
    compiled = torch.compile(module, backend="eager")
    with router(RETAIN):
        compiled(x()).sum().backward()
    module.zero_grad()

    refused = []

    def run():
        try:
            compiled(x()).sum().backward()
        except gr.RoutingError as error:
            refused.append(error)

    with router(FORGET):
        thread = threading.Thread(target=run)
        thread.start()
        thread.join()
    assert "another thread" in str(refused[0])
    assert module.bias.grad is None


# ---------------------------------------------------------------------- modules that are not called


class Bypass(nn.Module):
    """Calls its layer, or a method of it past its hooks."""

    def __init__(self):
        super().__init__()
        self.layer, self.head = layer(), nn.Linear(4, 2)
        self.around = False

    def forward(self, x):
        return self.head(self.layer.forward(x) if self.around else self.layer(x))

    def encode(self, x):
        return self.layer.forward(x)


BYPASSED = "got gradients from a `with router.labels.` block in which their modules were not called"


@pytest.mark.parametrize("compiled", [False, True], ids=["", "something else compiled"])
def test_a_bypassed_site_warns(compiled):
    model = Bypass()
    model.around = True
    router = gr.Router(model, {"layer": SPEC})
    if compiled:
        compile_something_else()
    with pytest.warns(gr.UnroutedWarning, match=BYPASSED), router(RETAIN):
        model(x()).sum().backward()


@pytest.mark.parametrize("where", ["in the block", "after it"])
@pytest.mark.parametrize("zeroed", [True, False])
def test_a_site_that_is_bypassed_from_the_second_step_on_warns(where, zeroed):
    model = Bypass()
    router = gr.Router(model, {"layer": SPEC})

    def step():
        if zeroed:
            model.zero_grad()
        with router(RETAIN):
            loss = model(x()).sum()
            if where == "in the block":
                loss.backward()
        if where == "after it":
            loss.backward()
        del loss

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        step()
        step()
    model.around = True
    with pytest.warns(gr.UnroutedWarning, match=BYPASSED):
        step()
        step()


@pytest.mark.filterwarnings("error")
def test_a_router_that_was_removed_looks_at_no_gradient_any_more():
    model = Bypass()
    router = gr.Router(model, {"layer": SPEC})
    with router(RETAIN):
        pass
    router.remove()
    model(x()).sum().backward()
    assert learned(model.layer) > 0


def test_another_method_than_forward_warns():
    model = Bypass()
    router = gr.Router(model, {"": gr.Site(gr.RoutingSpec({"retain": 0, "forget": 1}, 2))})
    with pytest.warns(gr.UnroutedWarning, match=BYPASSED), router(RETAIN):
        model.encode(x()).sum().backward()


def test_one_warning_does_not_spend_another():
    model = Bypass()
    router = gr.Router(model, {"layer": SPEC})
    with pytest.warns(gr.UnroutedWarning, match="no labels set"):
        model(x()).sum().backward()
    model.around = True
    with pytest.warns(gr.UnroutedWarning, match=BYPASSED), router(RETAIN):
        model(x()).sum().backward()


@pytest.mark.filterwarnings("error")
def test_experts_that_no_example_goes_to_are_no_bypass():
    experts = nn.ModuleList([layer(), layer()])
    router = gr.Router(experts, {"*": SPEC})
    for chosen in ((0, 1), (0,), (1,), (), (1,)):
        with router(RETAIN):
            for expert in chosen:
                experts[expert](x()).sum().backward()
        experts.zero_grad()


@pytest.mark.filterwarnings("error")
def test_a_backward_pass_in_a_later_block_is_no_bypass():
    model = Bypass()
    router = gr.Router(model, {"layer": SPEC})
    with router(RETAIN):
        loss = model(x()).sum()
    with router(FORGET):
        loss.backward()
    assert learned(model.layer) == 0


def test_a_module_that_is_replaced_inside_of_a_block_is_refused_as_that_ends():
    model = nn.Sequential(layer())
    router = gr.Router(model, {"0": SPEC})
    block = router(RETAIN)
    block.__enter__()
    model[0] = layer()
    model(x()).sum().backward()
    with pytest.raises(UsageError, match="are no longer in the model"):
        block.__exit__(None, None, None)
    assert router.labels is None


def test_a_layer_that_came_later_and_that_the_pattern_matches_is_refused():
    model = nn.Sequential(layer())
    router = gr.Router(model, {"*": SPEC})
    model.append(nn.Linear(4, 4))
    with pytest.raises(UsageError, match=r"pattern '\*' also matches '1', which came into the model after"):
        router(RETAIN).__enter__()


@pytest.mark.filterwarnings("error")
def test_a_layer_that_came_later_elsewhere_is_none_of_the_routers_business():
    model = nn.ModuleDict({"encoder": layer()})
    router = gr.Router(model, {"enc*": SPEC})
    model["decoder"] = nn.Linear(4, 4)
    with router(RETAIN):
        model["decoder"](model["encoder"](x())).sum().backward()
    assert learned(model["encoder"]) == 0


def test_a_copy_without_its_router_that_learns_in_evaluation_mode_warns():
    model = nn.Sequential(layer())
    gr.Router(model, {"0": SPEC})
    twin = copy.deepcopy(model).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loss = twin(x()).sum()
    with pytest.warns(gr.UnroutedWarning, match="a copy of a routed model without its router learns"):
        loss.backward()


def test_one_module_under_two_names_is_refused():
    model = nn.Module()
    model.good = model.bad = layer()
    with pytest.raises(SiteError, match="'good' and 'bad' are one module"):
        gr.Router(model, {"good": SPEC, "bad": SPEC})
    gr.Router(model, {"good": [SPEC, gr.Site(SPEC, level="parameters")], "goo*": SPEC})


@pytest.mark.parametrize("copied", ["copy", "deepcopy"])
def test_a_shallow_copy_at_level_parameters_is_refused(copied):
    module = layer()
    router = gr.Router(module, {"": gr.Site(SPEC, level="parameters")})
    if copied == "copy":
        twin = copy.copy(module)
        twin._parameters = {"weight": nn.Parameter(torch.zeros(4, 3)), "bias": None}
        with router(RETAIN), pytest.raises(UsageError, match="is a shallow copy"):
            twin(x())
    else:
        twin, router = copy.deepcopy((module, router))
        with router(RETAIN):
            twin(x()).sum().backward()
        assert learned(twin) == 0


# ---------------------------------------------------------------------- in-place operations on an alias


class Alias(nn.Module):
    """The site's tensor is one that its caller uses again, and something works in place on it."""

    def __init__(self, site):
        super().__init__()
        self.layer, self.site = layer(), site

    def forward(self, x):
        h = self.layer(x)
        routed = torch.relu_(self.site(h))
        return (routed * routed + 3 * h).sum()


class View(nn.Module):
    def forward(self, x):
        return x.view(4, 4)


@pytest.mark.parametrize("site", [nn.Identity, View, nn.Dropout], ids=lambda kind: kind.__name__)
def test_an_in_place_operation_on_what_the_caller_still_holds_raises(site):
    model = Alias(site()).eval()
    router = gr.Router(model, {"site": EVERYTHING})
    with router(RETAIN), pytest.raises(RuntimeError, match="is a view and is being modified inplace"):
        model(x())


def test_in_place_operations_on_what_a_module_made_itself_work():
    model = nn.Sequential(layer(), nn.ReLU(inplace=True), nn.Linear(4, 1))
    model(x()).sum().backward()
    expected = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    with gr.Router(model, {"0": EVERYTHING})(RETAIN):
        model(x()).sum().backward()
    assert all(torch.equal(p.grad, grad) for p, grad in zip(model.parameters(), expected, strict=True))


def test_the_input_of_a_module_that_works_in_place_is_refused():
    model = nn.Sequential(layer(), nn.ReLU(inplace=True))
    router = gr.Router(model, {"1": gr.Site(SPEC, on="input")})
    with router(RETAIN), pytest.raises(SiteError, match="this ReLU works in place"):
        model(x())
    with router(RETAIN), torch.no_grad():
        model(x())  # nothing is routed, so nothing is lost


# ---------------------------------------------------------------------- labels that change


@pytest.mark.parametrize("how", ["numpy", "data", "int32", "bool", "mixture"])
def test_labels_hold_what_they_held_when_the_block_began(how):
    """Where nothing counts what is written to them."""
    module = layer()
    router = gr.Router(module, {"": SPEC})
    labels = {
        "numpy": lambda: torch.from_numpy(np.zeros(4, dtype=np.int64)),
        "data": RETAIN.clone,
        "int32": lambda: RETAIN.to(torch.int32),
        "bool": lambda: torch.tensor([[True, False]] * 4),
        "mixture": lambda: torch.tensor([[1.0, 0.0]] * 4),
    }[how]()
    with router(labels):
        loss = module(x()).sum()
        if how == "numpy":
            labels.numpy()[:] = 1
        elif how in ("data", "int32"):
            labels.data.fill_(1)
        else:
            labels.data.copy_(labels.data.flip(-1))
        loss.backward()
    assert learned(module) == 0


@LEVELS
def test_labels_that_are_written_to_before_backward_raise_or_hold(level):
    gru = nn.GRU(3, 4, batch_first=True)
    router = gr.Router(gru, {"": gr.Site(SPEC, index=0, level=level)})
    labels = RETAIN.clone()
    with router(labels):
        loss = gru(torch.randn(4, 2, 3))[0].sum()
        labels.fill_(1)
        with pytest.raises(LabelError, match="changed in place"):
            loss.backward()


@LEVELS
@pytest.mark.parametrize("counted", [True, False])
def test_unlabeled_examples_that_are_labeled_before_backward_stay_unlabeled(level, counted):
    """A mask of ones closes nothing, so that no look-up of labels is left to the backward pass."""
    module = layer()
    router = gr.Router(module, {"": gr.Site(SPEC, level=level)})
    labels = torch.full((4,), gr.UNLABELED)
    with router(labels):
        loss = module(x()).sum()
        (labels if counted else labels.data).zero_()
        loss.backward()
        assert learned(module) > 0


def test_a_block_that_is_entered_again_reads_its_labels_again():
    module = layer()
    router = gr.Router(module, {"": SPEC})
    labels = FORGET.to(torch.int32)
    block = router(labels)
    with block:
        module(x()).sum().backward()
    assert learned(module) > 0
    module.zero_grad()
    labels.fill_(0)
    with block:
        module(x()).sum().backward()
    assert learned(module) == 0


# ---------------------------------------------------------------------- crashes


def test_labels_of_several_columns_get_a_hint_that_works():
    lstm = nn.LSTM(3, 4)
    router = gr.Router(lstm, {"": gr.Site(SPEC, index=0)})
    labels = torch.tensor([[True, False], [False, True]])
    with router(labels), pytest.raises(LabelError, match=r"labels\.expand\(5, -1, -1\)"):
        lstm(torch.randn(5, 2, 3))
    with router(labels.expand(5, -1, -1)):
        lstm(torch.randn(5, 2, 3))[0].sum().backward()


def test_a_pattern_that_is_a_module_is_told_its_name():
    model = nn.Sequential(layer())
    with pytest.raises(SiteError, match="got a Linear. Its name: '0'"):
        gr.Router(model, {model[0]: SPEC})


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_scripting_a_routed_model_says_what_to_do():
    model = nn.Sequential(layer())
    gr.Router(model, {"0": SPEC})
    with pytest.raises(UsageError, match=r"script cannot compile the hooks of a router"):
        torch.jit.script(model)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("site", ["", "layers.0"])
def test_units_are_off_where_a_transformer_makes_nested_tensors(site):
    torch.manual_seed(0)
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(4, 2, 8, batch_first=True), 2).eval()
    router = gr.Router(encoder, {site: gr.RoutingSpec.one_per_label(4)})
    padding = torch.tensor([[False, False, True]] * 4)
    values = torch.randn(4, 3, 4)
    seen = []
    module = encoder.get_submodule(site)
    module.register_forward_hook(lambda _, __, output: seen.append(output))
    with torch.no_grad(), router.ablated(0):
        encoder(values, src_key_padding_mask=padding)
    parts = seen[0].unbind() if seen[0].is_nested else [seen[0]]
    assert parts
    assert all(not part[..., 0].any() and part[..., 1:].any() for part in parts)


@pytest.mark.parametrize("ends", [("output",), ("input",), ("output", "input")])
def test_norms_under_autocast(ends):
    model = nn.Sequential(layer(), nn.LayerNorm(4))
    router = gr.Router(model, {"1": [gr.Site(SPEC, on=end, level="parameters") for end in ends]})
    with torch.autocast("cpu", dtype=torch.bfloat16), router(RETAIN):
        (model(x()) * torch.arange(16).view(4, 4)).sum().backward()
    assert learned(model[1]) == 0
    assert model[1].weight.grad[:3].all()
