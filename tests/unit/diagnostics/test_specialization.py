import json
import sys

import numpy as np
import pytest
import torch
from torch import nn

import gradroute as gr
from gradroute import specialization
from gradroute.errors import LabelError, SiteError

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


def of_units(activations, spec, labels, **options):
    """A report on units that are what they are given as, [n_examples, ...]; the loss is the sum of their squares."""
    model = nn.Sequential(nn.Identity())
    router = gr.Router(model, {"0": spec if isinstance(spec, gr.Site) else gr.Site(spec)})
    return specialization(router, lambda x: model(x).square().sum(), activations, labels, **options)


def test_own_units_and_all_others_are_probed_apart():
    labels = torch.arange(60) % 2
    x = torch.randn(60, 3)
    x[:, 1] += 5 * labels
    report = of_units(x, gr.RoutingSpec({0: 1, 1: [0, 2]}, 3), labels)
    first, second = report.slices
    assert first.probe.value > 0.95
    assert first.probe_without.value < 0.75
    assert second.probe.value < 0.75
    assert second.probe_without.value > 0.95


def test_activation_is_the_mean_magnitude_and_accuracy_is_by_own_units_that_others_do_not_share():
    labels = torch.tensor([0, 1, 2, -1] * 10)
    x = torch.zeros(40, 4)
    x[labels == 0, 0] = 2.0
    x[labels == 1, 1] = torch.tensor([2.0, -1.0]).repeat(5)
    x[:, 3] = 100.0 * (labels == 1)  # a shared unit tells nothing of whose an example is
    report = of_units(x, gr.RoutingSpec({0: 0, 1: 1, 2: ()}, 4, shared=3), labels)
    assert report.labels == (0, 1, 2), "unlabeled examples are left out"
    assert report.activation == ((2.0, 0.0, 0.0, 0.0), (0.0, 1.5, 0.0, 100.0), (0.0, 0.0, 0.0, 0.0))
    # Right are those of label 0 and the positive half of label 1; a label without units of its own is never guessed.
    assert report.accuracy.value == pytest.approx(15 / 30)
    assert report.slices[2].units == (3,)
    assert report.ablated_loss[2] is None


def test_units_are_looked_at_for_each_example_along_their_own_dimension():
    labels = torch.arange(20) % 2
    x = torch.zeros(20, 2, 3)
    x[torch.arange(20), labels] = torch.tensor([0.0, 1.0, 5.0])
    report = of_units(x, gr.Site(gr.RoutingSpec.one_per_label(2), dim=1), labels)
    assert report.activation == ((2.0, 0.0), (0.0, 2.0))


def test_a_whole_tensor_is_one_unit_of_its_size():
    x = torch.tensor([[3.0, 4.0], [0.0, 0.0]] * 10)
    site = gr.Site(gr.RoutingSpec({0: 0, 1: []}, 1), dim=None)
    assert of_units(x, site, torch.arange(20) % 2).activation == ((5.0,), (0.0,))


def test_the_site_that_is_asked_for_is_the_one_that_is_looked_at():
    model = Coder()
    with torch.no_grad():
        model.decoder.weight.copy_(torch.eye(LABELS).roll(1, 0))
    x, labels = data()
    router = gr.Router(model, {"latent": SPEC, "decoder": SPEC})
    reports = [specialization(router, model.loss, x, labels, site=site) for site in ("latent", "decoder")]
    assert [report.site for report in reports] == ["latent", "decoder"]
    assert [np.array(report.activation).argmax(1).tolist() for report in reports] == [[0, 1, 2], [1, 2, 0]]


def test_only_the_ablation_makes_the_difference_between_two_losses():
    """Not the random numbers that the step draws."""
    labels = torch.arange(20) % 2
    x = torch.randn(20, 2)
    x[:, 1] = 0.0
    model = nn.Sequential(nn.Identity())
    router = gr.Router(model, {"0": gr.RoutingSpec.one_per_label(2)})
    report = specialization(router, lambda x: (model(x) + torch.rand(())).square().mean(), x, labels)
    assert report.ablated_loss[0] != report.loss
    assert report.ablated_loss[1] == report.loss, "a unit that is 0 can as well be off"


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
    with pytest.raises(LabelError, match=r"shape \(n_examples,\)"):
        specialization(router, model.loss, x, labels > 0, site="latent")
    with pytest.raises(LabelError, match=r"at least 5 examples .*'2': 3"):
        specialization(router, model.loss, x, torch.where(torch.arange(N) > 8, labels % 2, labels), site="latent")
    with pytest.raises(SiteError, match="has 240 examples first, and there are 120 labels"):
        specialization(router, lambda x: model.loss(x.repeat(2, 1)), x, labels, site="latent")
    with pytest.raises(LabelError, match="two or more"):
        specialization(router, model.loss, x, torch.zeros_like(labels), site="latent")
    with pytest.raises(SiteError, match="did not run"):
        specialization(router, lambda x: x.sum(), x, labels, site="latent")
    monkeypatch.setitem(sys.modules, "sklearn.linear_model", None)
    with pytest.raises(ImportError, match=r"pip install scikit-learn.*pip install '\.\[probe\]' in a clone"):
        specialization(router, model.loss, x, labels, site="latent")
