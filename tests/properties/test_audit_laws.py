"""Laws of the audit: what is clean is said to be clean, and whatever opens it is found, in models drawn at random."""

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import gradroute as gr
from gradroute import audit

pytestmark = pytest.mark.long

N = 9


@dataclasses.dataclass
class Drawn:
    """A clean model: an encoder, a layer that writes units, what lies between, a layer that reads them, a decoder."""

    layers: list[nn.Module]
    sites: dict[str, gr.Site]
    labels: torch.Tensor
    batch: torch.Tensor
    writer: int
    reader: int
    level: str

    @property
    def model(self):
        return nn.Sequential(*self.layers)

    def audit(self, *, step=None, without=(), layers=None):
        model = nn.Sequential(*(layers or self.layers))
        sites = {name: site for name, site in self.sites.items() if name not in without}
        router = gr.Router(model, sites)
        report = audit(router, step or (lambda x: model(x).square().mean()), self.batch, self.labels)
        router.remove()
        return report


class Residual(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return x + self.inner(x)


ACTIVATIONS = [nn.ReLU, nn.Tanh, nn.GELU, nn.Sigmoid, nn.SiLU, nn.Identity, lambda: nn.ReLU(inplace=True)]


@st.composite
def drawn(draw, *, multi_hot=True):
    torch.manual_seed(draw(st.integers(0, 10_000)))
    convolutional = draw(st.booleans())
    widths = st.integers(2, 6)

    def linear(before, after, *, bias=True):
        return (
            nn.Conv1d(before, after, 3, padding=1, bias=bias) if convolutional else nn.Linear(before, after, bias=bias)
        )

    def norm(width):
        kinds = [nn.BatchNorm1d(width), nn.GroupNorm(1, width)]
        return draw(st.sampled_from(kinds if convolutional else [*kinds, nn.LayerNorm(width)]))

    def between(width):
        layers = [draw(st.sampled_from(ACTIVATIONS))()]
        if draw(st.booleans()):
            layers.append(norm(width))
        if draw(st.booleans()):
            layers.append(Residual(nn.Sequential(linear(width, width), nn.Tanh())))
        return layers

    n_labels = draw(st.integers(1, 4))
    shared = draw(st.integers(0, 2))
    sizes = {label: draw(st.integers(1, 2)) for label in range(n_labels)}
    spec = gr.RoutingSpec.split(sizes, shared=shared, unlabeled=draw(st.sampled_from(["all", "none", "shared"])))
    width, features, hidden, out = spec.width, draw(widths), draw(widths), draw(widths)
    layers = [linear(5, features), *between(features)]
    writer = len(layers)
    layers.append(linear(features, width))
    if draw(st.booleans()):
        layers.append(draw(st.sampled_from(ACTIVATIONS))())
    if draw(st.booleans()):
        layers.append(nn.Dropout(0.3))
    reader = len(layers)
    layers += [linear(width, hidden, bias=False), *between(hidden), linear(hidden, out)]
    dim = 1 if convolutional else -1
    level = draw(st.sampled_from(["activations", "parameters"]))
    sites = {
        str(writer): gr.Site(spec, level=level, dim=dim),
        str(reader): gr.Site(spec, on="input", level="parameters", dim=dim),
    }
    # Several of each, since a BatchNorm in training mode refuses less.
    labels = torch.tensor([*range(n_labels), -1] * 4)
    batch = torch.randn(len(labels), 5, *([4] if convolutional else []))
    if multi_hot and n_labels > 1 and draw(st.booleans()):
        labels = torch.nn.functional.one_hot(labels.clamp(min=0), n_labels).bool()
    return Drawn(layers, sites, labels, batch, writer, reader, level)


@settings(max_examples=100)
@given(drawn())
def test_a_clean_model_raises_no_alarm(case):
    report = case.audit()
    assert report.clean, report
    report.assert_clean()
    for site in report.sites:
        for taught, routed in zip(site.taught, site.routed, strict=True):
            assert all(allowed or gradient == 0 for allowed, gradient in zip(taught, routed, strict=True))


@settings(max_examples=20)
@given(drawn(multi_hot=False))
def test_readers_that_lose_their_site_are_found(case):
    columns = case.audit().sites[1]
    pairs = zip(columns.taught, columns.unrouted, strict=True)
    leaks = any(norm > 0 and not allowed for row in pairs for allowed, norm in zip(*row, strict=True))
    report = case.audit(without=[str(case.reader)])
    found = {(bypass.target, bypass.kind) for bypass in report.bypasses}
    several = len(columns.taught[0]) > 1  # of a single unit, readers cannot be told from what comes after
    assert found == ({(f"{case.reader}.weight", "reader")} if leaks and several else set())


@settings(max_examples=20)
@given(drawn(multi_hot=False))
def test_a_loss_on_what_the_writer_wrote_is_found(case):
    kept = []

    class Keeping(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, x):
            kept.append(self.inner(x))
            return kept[-1].view_as(kept[-1])

    layers = list(case.layers)
    layers[case.writer] = nn.Sequential(Keeping(layers[case.writer]))
    model = nn.Sequential(*layers)
    sites = dict(case.sites)
    sites[str(case.writer)] = dataclasses.replace(sites[str(case.writer)], level="activations")

    def step(x):
        kept.clear()
        return model(x).square().mean() + kept[0].square().mean()

    router = gr.Router(model, sites)
    report = audit(router, step, case.batch, case.labels)
    found = {(bypass.target, bypass.kind) for bypass in report.bypasses}
    name = f"{case.writer}.0.inner"
    # What it is made of may be 0 throughout, behind a ReLU; then so is the gradient of the weight.
    learns = {
        parameter
        for parameter in (f"{name}.weight", f"{name}.bias")
        for taught, norm in zip(report.sites[0].taught, report.parameters[parameter].unrouted, strict=True)
        if norm > 0 and not all(taught)
    }
    assert found == {(parameter, "side loss") for parameter in learns}


@settings(max_examples=10)
@given(drawn(multi_hot=False))
def test_what_is_measured_does_not_depend_on_how_the_labels_are_called(case):
    names = [f"label {number}" for number in range(len(case.sites[str(case.writer)].spec.labels))]

    def renamed(site):
        routes = dict(zip(names, site.spec.routes.values(), strict=True))
        spec = gr.RoutingSpec(routes, site.spec.width, shared=site.spec.shared, unlabeled=site.spec.unlabeled)
        return dataclasses.replace(site, spec=spec)

    before = case.audit(without=[str(case.reader)])
    sites, case.sites = case.sites, {name: renamed(site) for name, site in case.sites.items()}
    after = case.audit(without=[str(case.reader)])
    case.sites = sites
    assert [b.share for b in before.bypasses] == [b.share for b in after.bypasses]
    assert [site.routed for site in before.sites] == [site.routed for site in after.sites]
    assert after.labels == tuple(names[label] if label >= 0 else label for label in before.labels)


# ------------------------------------------------------------------ a label that may teach no unit of a site

CLOSED = 1


class Expert(nn.Module):
    """Hidden layers, and heads on the last of them: the units, and what else it returns. It keeps what they make."""

    def __init__(self, hidden: list[nn.Module], width: int, *, several: bool) -> None:
        super().__init__()
        self.hidden = nn.ModuleList(hidden)
        self.units = nn.Linear(3, width)
        self.beside = nn.Linear(3, 2)  # made of the last hidden layer, and never of the units
        self.several = several
        self.kept: list[torch.Tensor] = []

    def forward(self, x):
        for layer in self.hidden:
            x = torch.tanh(layer(x))
            self.kept.append(x)
        self.kept.append(self.beside(x))
        units = self.units(x).tanh()
        return (units, self.kept[-1]) if self.several else units


class AroundAnExpert(nn.Module):
    """A trunk, an expert that is called once or twice, another expert, and a loss that may read what is in the first."""

    def __init__(self, expert, other, *, tied, twice, read, joins):
        super().__init__()
        self.trunk = nn.Linear(3, 3)
        self.expert, self.other = expert, other
        self.again = expert.hidden[0] if tied else nn.Identity()
        self.head = nn.Linear(expert.units.out_features, 3)
        self.twice, self.read, self.joins = twice, read, joins

    def loss(self, x):
        self.expert.kept.clear()
        x = self.again(torch.tanh(self.trunk(x)))
        y = self.expert(x)
        y, beside = y if isinstance(y, tuple) else (y, None)
        if self.twice:
            again = self.expert(x + 1)
            y = y + (again[0] if isinstance(again, tuple) else again)
        out = self.head(y) + self.other(x)
        if beside is not None:
            out = out + beside.mean(-1, keepdim=True)
        seen = [self.expert.kept[position % len(self.expert.kept)] for position in self.read]
        if self.joins:
            return (out + sum((one.sum(-1, keepdim=True) for one in seen), torch.zeros(()))).square().mean()
        return out.square().mean() + sum((one.square().mean() for one in seen), torch.zeros(()))


EITHER = (False, True)


@st.composite
def closed_experts(draw, *, leaks=EITHER, several=EITHER):
    torch.manual_seed(draw(st.integers(0, 10_000)))
    width = draw(st.integers(1, 3))
    several = draw(st.sampled_from(several))
    hidden = [nn.Linear(3, 3) for _ in range(draw(st.integers(1, 3)))]
    read = draw(st.lists(st.integers(0, 7), min_size=1, max_size=2)) if draw(st.sampled_from(leaks)) else []
    other = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3))
    model = AroundAnExpert(
        Expert(hidden, width, several=several),
        other,
        tied=draw(st.booleans()),
        twice=draw(st.booleans()),
        read=read,
        joins=draw(st.booleans()),
    )
    level = draw(st.sampled_from(["activations", "parameters"]))
    names = draw(st.sampled_from([None, ("hidden.0.weight", "units.bias")])) if level == "parameters" else None
    # A label that teaches all units, one that teaches none, and one that teaches some.
    routes = {0: range(width), CLOSED: [], 2: draw(st.sets(st.integers(0, width - 1)))}
    silent = {CLOSED: [0, 2]} if draw(st.booleans()) and names is None else None
    spec = gr.RoutingSpec(routes, width, silent=silent)
    on_units = gr.Site(spec, level=level, index=0 if several else None, parameters=names)
    sites = {"expert": on_units, "other": gr.RoutingSpec({0: [], CLOSED: range(3), 2: [0]}, 3)}
    if draw(st.booleans()):  # inside, on all that the label may teach of a hidden layer
        sites["expert.hidden.0"] = gr.RoutingSpec({0: range(3), CLOSED: range(3), 2: range(3)}, 3)
    if draw(st.booleans()):
        sites["head"] = gr.Site(spec, on="input", level="parameters")
    return model, sites


def reported(model, sites):
    """What the audit says that the closed label trains, and what it does train, computed by hand."""
    router = gr.Router(model, sites)
    x, labels = torch.randn(9, 3), torch.arange(3).repeat(3)
    report = audit(router, model.loss, x, labels)
    mine = labels == CLOSED
    model.zero_grad()
    with router(labels[mine]):
        model.loss(x[mine]).backward()
    router.remove()
    learns = {name for name, p in model.named_parameters() if p.grad is not None and bool(p.grad.any())}
    return [bypass for bypass in report.bypasses if bypass.label == CLOSED], learns


@settings(max_examples=40)
@given(closed_experts())
def test_whatever_a_label_teaches_inside_of_what_is_closed_to_it_is_named(case):
    model, sites = case
    bypasses, learns = reported(model, sites)
    names = sites["expert"].parameters
    inside = {name for name in learns if name.startswith("expert.")}
    if names is not None:
        inside &= {f"expert.{name}" for name in names}
    elsewhere = {name for name in inside if model.again is model.expert.hidden[0] and "hidden.0." in name}
    found = {bypass.target for bypass in bypasses if bypass.target.startswith("expert.")}
    assert found - {"expert"} == inside - elsewhere
    for bypass in bypasses:
        if bypass.target.startswith("expert."):
            assert bypass.site == "expert"
            assert bypass.kind in (
                {"tied weight"} if sites["expert"].level == "parameters" else {"side loss", "skip connection"}
            )
            assert bypass.advice


@settings(max_examples=15)
@given(closed_experts(leaks=(False,), several=(False,)))
def test_what_is_closed_and_does_not_leak_raises_no_alarm(case):
    model, sites = case
    bypasses, learns = reported(model, sites)
    assert not [bypass for bypass in bypasses if bypass.target.startswith("expert")]
    tied = model.again is model.expert.hidden[0]
    names = sites["expert"].parameters
    if names is None:
        assert {name for name in learns if name.startswith("expert.")} == (
            {"expert.hidden.0.weight", "expert.hidden.0.bias"} if tied else set()
        )
    assert {name for name in learns if name.startswith("other.")}, "the label teaches the other expert"


@settings(max_examples=10)
@given(closed_experts(leaks=(False,), several=(True,)))
def test_what_is_open_by_another_tensor_of_the_same_module_is_no_leak(case):
    model, sites = case
    open_beside = gr.Site(gr.RoutingSpec({0: [], CLOSED: [0, 1], 2: [0]}, 2), index=1)
    sites["expert"] = [sites["expert"], open_beside]
    bypasses, learns = reported(model, sites)
    assert not [bypass for bypass in bypasses if bypass.target.startswith("expert")]
    assert "expert.hidden.0.weight" in learns
