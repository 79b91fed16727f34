"""The judge itself: faults that are planted in one module are found there, at both levels, and nowhere else."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import gradroute as gr
from foreign import judge
from foreign.batches import Foreign, numbers
from foreign.layers import layer, unit_dimension
from foreign.models import MODELS
from foreign.run import record, table


class Both(nn.Module):
    """Layers with channels last, then with channels first; all sizes alike, so that a mask fits along any dimension."""

    def __init__(self):
        super().__init__()
        self.last = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))
        self.first = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4))
        self.head = nn.Linear(4, 5)

    def forward(self, x):
        return self.head(F.gelu(self.first(self.last(x).permute(0, 3, 1, 2))).mean((2, 3)))


BOTH = Foreign("both", "none", Both, numbers("x", 4, 4, 4))
LAYERS = ("last.0", "last.1", "first.0", "first.1", "head")


def results():
    return {(one.module, one.level): one.result for one in judge.outcomes(BOTH)}


def test_all_modules_hold_and_those_with_parameters_exactly():
    found = list(judge.outcomes(BOTH))
    assert [one for one in found if one.result != "held" or not one.exact] == []
    assert len(found) == len(judge.LEVELS) * sum(1 for _ in Both().modules())


class MaskOff(gr.Router):
    """Routes nothing at one module."""

    def __init__(self, model, sites):
        sites = {name: self.fault(name, site) for name, site in sites.items()}
        super().__init__(model, sites)

    def fault(self, name, site):
        if name != self.at:
            return site
        spec = gr.RoutingSpec(dict.fromkeys(site.spec.labels, range(site.spec.width)), site.spec.width)
        return gr.Site(spec, level=site.level, dim=site.dim, index=site.index)


class WrongDimension(MaskOff):
    """Routes one module along another dimension."""

    def fault(self, name, site):
        if name != self.at:
            return site
        return gr.Site(site.spec, level=site.level, dim=-1 if site.dim == 1 else 1, index=site.index)


class Leak(gr.Router):
    """Teaches the parameters of one module a little besides: far less than any tolerance."""

    def __init__(self, model, sites):
        super().__init__(model, sites)
        if self.at in sites:
            for p in model.get_submodule(self.at).parameters():
                p.register_hook(lambda grad: grad + 1e-14)


@pytest.mark.parametrize("at", LAYERS)
@pytest.mark.parametrize("planted", [MaskOff, WrongDimension, Leak])
def test_a_fault_in_one_module_fails_there_at_both_levels_and_nowhere_else(planted, at, monkeypatch):
    if planted is WrongDimension and at == "head":
        pytest.skip("of two dimensions one is the batch")
    monkeypatch.setattr(gr, "Router", type("Planted", (planted,), {"at": at}))
    found = results()
    assert {place for place, result in found.items() if result == "FAILED"} == {(at, level) for level in judge.LEVELS}
    assert set(found.values()) == {"FAILED", "held"}


@pytest.mark.parametrize("reason", ["learns at units", "every unit is closed"])
def test_a_leak_is_seen_in_closed_rows_and_by_closing_all(reason, monkeypatch):
    # Each check for itself: the other one is switched off.
    if reason == "learns at units":
        monkeypatch.setattr(judge.Judge, "closed", lambda *args: ("", True))
    else:
        monkeypatch.setattr(judge.Judge, "_not_silent", lambda *args: [])
    monkeypatch.setattr(gr, "Router", type("Planted", (Leak,), {"at": "last.1"}))
    failed = [one for one in judge.outcomes(BOTH) if one.result == "FAILED"]
    assert {one.level for one in failed} == set(judge.LEVELS)
    assert all(reason in one.why for one in failed)


def test_the_dimension_of_the_units_is_the_layers_own():
    model = Both()
    assert [unit_dimension(model.get_submodule(name), 4) for name in LAYERS[:4]] == [-1, -1, 1, 1]
    assert (unit_dimension(model.last, 4), unit_dimension(model.first, 4), unit_dimension(model, 4)) == (-1, 1, 1)
    assert unit_dimension(nn.Conv1d(4, 4, 1), 3) == 1
    assert layer(nn.ConvTranspose2d(4, 4, 1, groups=2)) is None


class Other(nn.Linear):
    def forward(self, x):
        return super().forward(x).flip(-1)


def test_a_subclass_that_computes_something_else_is_no_known_layer():
    assert layer(type("Same", (nn.Linear,), {})(4, 4)) == layer(nn.Linear(4, 4))
    assert layer(Other(4, 4)) is None


@pytest.mark.parametrize("most", [1, 6, 7, 8])
def test_a_cap_keeps_every_class_and_the_order(most):
    model = Both()
    names = [name for name, _ in model.named_modules()]
    kept = judge.chosen(model, most)
    classes = {type(module) for module in model.modules()}
    assert kept == [name for name in names if name in set(kept)]
    assert {type(model.get_submodule(name)) for name in kept} == classes
    assert len(kept) == min(max(most, len(classes)), len(names))


def test_what_is_left_out_is_counted(monkeypatch):
    monkeypatch.setitem(MODELS, "both", BOTH)
    whole, cut = record("both"), record("both", budget=0.0)
    assert (whole["left_out"], cut["left_out"]) == (0, whole["modules"] - 1)
    assert f"| {cut['modules']} | {cut['left_out']} |" in table([cut])


def test_a_scale_that_starts_at_almost_nothing_hides_nothing():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.scale = nn.Linear(4, 4), nn.Parameter(torch.full((4,), 1e-6))

        def forward(self, x):
            return x + self.scale * self.inner(x)

    model, _ = Foreign("scaled", "none", Scaled, numbers("x", 4)).make()
    assert float(model.scale.detach().abs().max()) > 0.01


class Cancels(nn.Module):
    """Two outputs; the bias reaches the one that its site leaves alone, where a normalization cancels it to a rest of rounding."""

    def __init__(self):
        super().__init__()
        self.inner, self.norm = nn.Conv1d(3, 4, 1), nn.BatchNorm1d(4)

    def forward(self, x):
        y = self.inner(x)
        return {"first": y.square(), "second": self.norm(y)}


class Wrapped(nn.Module):
    def __init__(self):
        super().__init__()
        self.both = Cancels()

    def forward(self, x):
        both = self.both(x)
        return both["first"], both["second"]


def test_what_another_output_teaches_by_a_rest_of_rounding_is_no_leak():
    wrapped = Foreign("wrapped", "none", Wrapped, numbers("x", 3, 7))
    found = list(judge.outcomes(wrapped, ("both",)))
    assert [(one.result, one.exact) for one in found] == [("held", False)] * len(judge.LEVELS)
