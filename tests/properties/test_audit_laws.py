"""Laws of the audit: what is clean is said to be clean, and whatever opens it is found, in models drawn at random."""

import dataclasses

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import gradroute as gr
from gradroute import audit

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
