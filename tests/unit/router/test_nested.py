"""How a tensor is found in what a module takes and returns, and put back edited."""

from collections import OrderedDict, namedtuple
from collections.abc import MutableMapping
from dataclasses import dataclass

import pytest
import torch
from torch import nn

import gradroute as gr
from gradroute.errors import SiteError

SPEC = gr.RoutingSpec.one_per_label(3)
LABELS = torch.tensor([0, 2])
ROUTED = torch.eye(3)[LABELS]  # the gradient of a sum, masked
Pair = namedtuple("Pair", ["first", "second"])


@dataclass
class Record:
    first: torch.Tensor
    second: object


class Packs(nn.Module):
    """Returns its input beside something else, in a container."""

    def __init__(self, pack):
        super().__init__()
        self.pack = pack

    def forward(self, x):
        return self.pack(x * 1)


def model_output(x):
    from transformers.modeling_outputs import BaseModelOutput

    return BaseModelOutput(last_hidden_state=x, hidden_states=(x * 2,))


class Takes(nn.Module):
    def forward(self, scale, hidden, *, extra=None):
        return scale * hidden["h"] if isinstance(hidden, dict) else scale * hidden


#: What makes a container of a tensor, the index of the tensor in it, and what gets it back.
CONTAINERS = [
    (lambda x: (None, x), 1, lambda out: out[1]),
    (lambda x: (None, x), -1, lambda out: out[1]),
    (lambda x: [x, "other"], 0, lambda out: out[0]),
    (lambda x: Pair("other", x), 1, lambda out: out.second),
    (lambda x: {"x": x, "other": 1}, "x", lambda out: out["x"]),
    (lambda x: OrderedDict(a=x), "a", lambda out: out["a"]),
    (lambda x: Record(x, "other"), "first", lambda out: out.first),
    (lambda x: (None, (None, {"h": x})), (1, 1, "h"), lambda out: out[1][1]["h"]),
    (model_output, "last_hidden_state", lambda out: out.last_hidden_state),
    (model_output, 0, lambda out: out[0]),
    (model_output, ("hidden_states", 0), lambda out: out.hidden_states[0] / 2),
]


@pytest.mark.parametrize(("pack", "index", "get"), CONTAINERS)
def test_index_finds_the_tensor_in_any_container_and_keeps_the_rest(pack, index, get):
    module = Packs(pack)
    x = torch.zeros(2, 3, requires_grad=True)
    plain = module(x)
    router = gr.Router(module, {"": gr.Site(SPEC, index=index)})
    with router(LABELS):
        out = module(x)
    assert type(out) is type(plain)
    assert len(vars(out) if isinstance(out, Record) else out) == len(
        vars(plain) if isinstance(plain, Record) else plain
    )
    get(out).sum().backward()
    assert torch.equal(x.grad, ROUTED)


# What Dynamo says of itself where it breaks off, and where it looks at tensors that are no leaves.
@pytest.mark.filterwarnings("ignore:.*Dynamo does not know", "ignore:The .grad attribute")
@pytest.mark.parametrize(
    ("pack", "index", "get", "level"),
    [*((*each, "activations") for each in CONTAINERS), (lambda x: {"x": x}, "x", lambda out: out["x"], "parameters")],
)
def test_compiled_code_finds_it_in_the_same_containers(pack, index, get, level):
    torch._dynamo.reset()
    module = nn.Sequential(nn.Linear(3, 3), Packs(pack))
    model = nn.Sequential(module)
    router = gr.Router(model, {"0": gr.Site(SPEC, index=index, level=level)})
    found = []
    for run in (model, torch.compile(model, backend="eager")):
        model.zero_grad()
        with router(LABELS):
            out = run(torch.ones(2, 3))
            get(out).sum().backward()
        found.append(module[0].bias.grad)
    assert torch.equal(*found)
    assert torch.equal(found[0], ROUTED.sum(0))
    assert type(out) is type(pack(torch.ones(2, 3)))


class Named(tuple):  # for its attributes
    """A tuple whose items have names, by a property and by an attribute."""

    @property
    def first(self):
        return self[0]


def named(x):
    made = Named([x, "other"])
    made.again, made.rest = x, "rest"
    return made


def recorded(x):
    made = Record(x, "other")
    made.again, made.rest = x, "rest"
    return made


@pytest.mark.parametrize(("pack", "index"), [(named, 0), (recorded, "first")])
def test_a_container_s_class_and_its_other_attributes_stay(pack, index):
    """Whoever asks whether there is an auxiliary loss goes on without it where it is lost."""
    x = torch.zeros(2, 3, requires_grad=True)
    module = Packs(pack)
    with gr.Router(module, {"": gr.Site(SPEC, index=index)})(LABELS):
        out = module(x)
    assert type(out) is type(pack(x))
    assert out.rest == "rest"
    assert out.again is out.first
    out.again.sum().backward()
    assert torch.equal(x.grad, ROUTED)


class Shares(MutableMapping):
    """A mapping whose shallow copy holds the same dict."""

    def __init__(self, **items):
        self.items_held = items

    def __getitem__(self, key):
        return self.items_held[key]

    def __setitem__(self, key, value):
        self.items_held[key] = value

    def __delitem__(self, key):
        del self.items_held[key]

    def __iter__(self):
        return iter(self.items_held)

    def __len__(self):
        return len(self.items_held)


def test_a_container_that_would_be_changed_with_its_copy_is_refused():
    """What the module keeps would be routed again by the labels of the next batch."""
    kept = []
    module = Packs(lambda x: kept.append(Shares(x=x)) or kept[-1])
    x = torch.zeros(2, 3, requires_grad=True)
    router = gr.Router(module, {"": gr.Site(SPEC, index="x")})
    with router(LABELS), pytest.raises(SiteError, match="a Shares is changed with its copy"):
        module(x)
    kept[0]["x"].sum().backward()
    assert torch.equal(x.grad, torch.ones(2, 3))


def test_containers_of_the_module_are_not_changed():
    kept = []
    module = Packs(lambda x: kept.append({"x": x}) or kept[-1])
    router = gr.Router(module, {"": gr.Site(SPEC, index="x")})
    x = torch.zeros(2, 3, requires_grad=True)
    with router(LABELS):
        out = module(x)
    assert out is not kept[0]
    kept[0]["x"].sum().backward()
    assert torch.equal(x.grad, torch.ones(2, 3))


@pytest.mark.parametrize(
    ("pack", "index", "message"),
    [
        (lambda x: (x, None), None, r"site '': expected a tensor, found a tuple of 2 \(Tensor, NoneType\). Say which"),
        (lambda x: {"a": x}, None, "found a dict with the keys 'a'"),
        (lambda x: Record(x, 1), None, "found a Record with the fields 'first', 'second'"),
        (lambda x: (x, None), 1, "expected a tensor, found a NoneType"),
        (lambda x: (x, None), 2, r"no index 2 in a tuple of 2"),
        (lambda x: {"a": x}, "b", "no index 'b' in a dict with the keys 'a'"),
        (lambda x: x, "a", r"no index 'a' in a tensor of shape \(2, 3\)"),
    ],
)
def test_an_index_that_leads_to_no_tensor_is_an_error_in_the_forward_pass(pack, index, message):
    module = Packs(pack)
    router = gr.Router(module, {"": gr.Site(SPEC, index=index)})
    with router(LABELS), pytest.raises(SiteError, match=message):
        module(torch.zeros(2, 3, requires_grad=True))


@pytest.mark.parametrize("index", [1, "hidden"])
def test_input_sites_find_an_argument_however_it_is_passed(index):
    module = Takes()
    router = gr.Router(module, {"": gr.Site(SPEC, on="input", index=index)})
    for call in (lambda x: module(2.0, x), lambda x: module(2.0, hidden=x), lambda x: module(hidden=x, scale=2.0)):
        x = torch.zeros(2, 3, requires_grad=True)
        with router(LABELS):
            out = call(x)
        out.sum().backward()
        assert torch.equal(x.grad, 2 * ROUTED)


def test_input_sites_reach_into_arguments_and_report_missing_ones():
    module, x = Takes(), torch.zeros(2, 3, requires_grad=True)
    router = gr.Router(module, {"": gr.Site(SPEC, on="input", index=("hidden", "h"))})
    with router(LABELS):
        module(1.0, {"h": x}).sum().backward()
    assert torch.equal(x.grad, ROUTED)
    router.remove()
    router = gr.Router(module, {"": gr.Site(SPEC, on="input", index="extra")})
    with (
        router(LABELS),
        pytest.raises(SiteError, match=r"no argument 'extra' in a call with 2 by position and none by name"),
    ):
        module(1.0, x)
