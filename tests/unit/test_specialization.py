import json
import sys

import numpy as np
import pytest
import torch
from torch import nn

import gradroute as gr
from gradroute.errors import LabelError, SiteError
from gradroute.specialization import specialization

pytest.importorskip("sklearn")
N, LABELS = 120, 3
SPEC = gr.RoutingSpec.one_per_label(LABELS)


class Coder(nn.Module):
    """Two inputs a label: the first says how much of the label there is, the second how the example looks."""

    def __init__(self, leak=0.0):
        super().__init__()
        self.latent = nn.Linear(2 * LABELS, LABELS, bias=False)
        self.decoder = nn.Linear(LABELS, LABELS, bias=False)
        with torch.no_grad():
            self.latent.weight.copy_(
                torch.eye(LABELS).repeat_interleave(2, 1) * torch.tensor([1.0, 0.2]).repeat(LABELS)
            )
            self.latent.weight += leak * (1 - torch.eye(LABELS)).repeat_interleave(2, 1)
            self.decoder.weight.copy_(torch.eye(LABELS))

    def forward(self, x):
        return self.decoder(self.latent(x))

    def loss(self, x):
        return (self(x) - x[:, ::2]).square().mean()


def data(seed=0):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(N) % LABELS
    x = torch.zeros(N, 2 * LABELS)
    x[torch.arange(N), 2 * labels] = 3 + 0.02 * torch.randn(N, generator=generator)
    x[torch.arange(N), 2 * labels + 1] = torch.randn(N, generator=generator)
    return x + 0.01 * torch.randn(x.shape, generator=generator), labels


def report_of(model, **options):
    x, labels = data()
    return specialization(gr.Router(model, {"latent": SPEC}), model.loss, x, labels, **options)


def test_units_that_know_their_own_label_and_nothing_else():
    model = Coder()
    x, labels = data()
    targets = x[torch.arange(N), 2 * labels + 1][:, None].repeat(1, 4)
    report = report_of(model, targets=targets)
    assert report.labels == (0, 1, 2)
    assert report.examples == (40, 40, 40)
    assert report.accuracy.value == 1.0
    assert 0.15 < report.placebo_accuracy.value < 0.55
    assert report.placebo_accuracy.low < 1 / LABELS < report.placebo_accuracy.high
    activation = np.array(report.activation)
    assert (activation.argmax(1) == np.arange(LABELS)).all()
    for number, part in enumerate(report.slices):
        assert part.units == (number,)
        assert part.probe.value > 0.99
        assert part.probe.low <= part.probe.value <= part.probe.high
        assert part.placebo.low < 0.5 < part.placebo.high + 0.1
        assert part.decoder.value > 0.9
        assert part.decoder_without.value < 0.2
        rises = np.array(report.ablated_loss[number]) - np.array(report.loss)
        assert rises[number] > 1
        assert np.abs(np.delete(rises, number)).max() < 0.01


def test_what_leaks_into_other_units_shows_there():
    x, labels = data()
    targets = x[torch.arange(N), 2 * labels + 1][:, None]
    clean, leaking = (report_of(Coder(leak), targets=targets) for leak in (0.0, 0.5))
    for before, after in zip(clean.slices, leaking.slices, strict=True):
        assert after.decoder_without.value > before.decoder_without.value + 0.5


def test_the_model_stays_as_it_was_and_reports_are_repeatable():
    model = Coder()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    first, second = report_of(model), report_of(model)
    assert first == second
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert first.slices[0].decoder is None


def test_shared_units_and_labels_that_cannot_be_switched_off():
    model = Coder()
    spec = gr.RoutingSpec({"a": [0, 1], "b": [1], "c": [2]}, LABELS)
    x, labels = data()
    report = specialization(gr.Router(model, {"latent": spec}), model.loss, x, labels)
    assert report.labels == ("a", "b", "c")
    assert report.ablated_loss[1] is None
    assert "-" in str(report)


def test_rendering():
    report = report_of(Coder())
    data = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert data["slices"][0]["units"] == [0]
    for text in (str(report), report.to_markdown(), report._repr_html_()):
        assert "probe, own units" in text
    pytest.importorskip("matplotlib")
    report.plot().canvas.draw()


def test_what_is_wrong_is_refused(monkeypatch):
    model = Coder()
    x, labels = data()
    router = gr.Router(model, {"latent": SPEC, "decoder": SPEC})
    with pytest.raises(SiteError, match="2 sites"):
        specialization(router, model.loss, x, labels)
    with pytest.raises(SiteError, match="Did you mean 'latent'"):
        specialization(router, model.loss, x, labels, site="latnet")
    with pytest.raises(LabelError, match=r"shape \(n_examples,\)"):
        specialization(router, model.loss, x, labels.float(), site="latent")
    with pytest.raises(LabelError, match="two or more"):
        specialization(router, model.loss, x, torch.zeros_like(labels), site="latent")
    with pytest.raises(SiteError, match="did not run"):
        specialization(router, lambda x: x.sum(), x, labels, site="latent")
    monkeypatch.setitem(sys.modules, "sklearn.linear_model", None)
    with pytest.raises(ImportError, match=r"pip install gradroute\[probe\]"):
        specialization(router, model.loss, x, labels, site="latent")
