"""Whose units the units of a module without parameters are, where that can be known; and what is said where not."""

import pytest
import torch
from torch import nn

import gradroute as gr
from gradroute.errors import SiteError
from gradroute.optim import Isolation, clip_grad_norm_per_route_
from gradroute.optim._writing_layers import WritingLayers
from gradroute.unit_dims import ELEMENTWISE

SPEC = gr.RoutingSpec({"retain": slice(0, 3), "forget": [3, 5]}, 7, shared=[4, 6])


def layers(model, name, site=None):
    return WritingLayers(dict(model.named_modules(remove_duplicate=False))).of(name, site or gr.Site(SPEC))


def make(kind):
    return kind(0.1, 0.2) if kind is nn.Threshold else kind()


@pytest.mark.parametrize("kind", ELEMENTWISE, ids=lambda kind: kind.__name__)
def test_each_entry_of_an_element_wise_module_reads_that_entry_alone(kind):
    """What the table says of these classes, by their gradients. The dropouts of whole channels have channels at 1."""
    module = make(kind)
    assert not list(module.parameters())
    spatial = {nn.Dropout1d: 1, nn.Dropout2d: 2}.get(kind, 3)
    x = torch.randn(3, 4, *[2] * spatial).requires_grad_()
    for unit in range(4):
        torch.manual_seed(0)
        (gradient,) = torch.autograd.grad(module(x).select(1, unit).sum(), x)
        others = [other for other in range(4) if other != unit]
        assert (gradient[:, others] == 0).all()
        assert gradient.shape == module(x).shape


def test_of_a_module_with_parameters_they_are_its_own():
    model = nn.Sequential(nn.Linear(4, 7), nn.PReLU(), nn.LayerNorm(7))
    assert [layers(model, name) for name in "012"] == [("0",), ("1",), ("2",)]


@pytest.mark.parametrize("kind", ELEMENTWISE, ids=lambda kind: kind.__name__)
def test_of_an_element_wise_module_they_are_those_of_the_layer_before(kind):
    model = nn.ModuleDict({"mlp": nn.Sequential(nn.Linear(4, 9), nn.ReLU(), nn.Linear(9, 7), make(kind), nn.Dropout())})
    assert layers(model, "mlp.3") == layers(model, "mlp.4") == ("mlp.2",)


def test_a_batch_norm_in_between_is_theirs_too():
    model = nn.Sequential(nn.Conv2d(3, 7, 1), nn.BatchNorm2d(7), nn.ReLU())
    assert layers(model, "2", gr.Site(SPEC, dim=1)) == ("1", "0")
    assert layers(model[1:], "2", gr.Site(SPEC, dim=1)) == ("1",), "nothing is known before it"


def test_on_the_input_they_are_not_looked_for():
    model = nn.Sequential(nn.Linear(4, 7), nn.ReLU())
    assert layers(model, "1", gr.Site(SPEC, on="input")) == ("1",)


def test_one_stack_under_two_names_is_one():
    model = nn.Module()
    model.a = model.b = nn.Sequential(nn.Linear(4, 7), nn.ReLU())
    assert layers(model, "a.1") == ("a.0",)


class Mine(nn.Sequential):
    """May call its modules in any order."""


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.act, self.down = nn.Linear(4, 7), nn.ReLU(), nn.Linear(7, 4)


class Stacks(nn.Module):
    """One ReLU behind two layers, one layer before two ReLUs."""

    def __init__(self):
        super().__init__()
        act, layer = nn.ReLU(), nn.Linear(7, 7)
        self.relu = nn.Sequential(nn.Linear(7, 7), act, nn.Linear(7, 7), act)
        self.layer = nn.Sequential(layer, nn.ReLU(), layer, nn.ReLU())


def patched():
    model = nn.Sequential(nn.Linear(4, 7), nn.ReLU())
    model.forward = lambda x: x
    return model


@pytest.mark.parametrize(
    ("model", "name", "why", "instead"),
    [
        (
            Block(),
            "act",
            "only in an nn.Sequential, where nothing comes before 'act'",
            "Put the site on 'up', if that writes them",
        ),
        (Mine(nn.Linear(4, 7), nn.ReLU()), "1", "only in an nn.Sequential", "Put the site on '0', if that"),
        (patched(), "1", "only in an nn.Sequential", "Put the site on '0', if that"),
        (nn.Sequential(nn.ReLU(), nn.Linear(7, 7), nn.Linear(7, 7)), "0", "nothing comes before '0'", "the layer that"),
        (nn.Sequential(nn.Dropout(), nn.ReLU()), "1", "nothing comes before '0'", "on the layer that writes them"),
        (nn.ReLU(), "", "nothing comes before ''", "on the layer that writes them"),
        (
            nn.Sequential(nn.LSTM(4, 7), nn.ReLU()),
            "1",
            "before it comes '0', and the units of a LSTM",
            "the layer that",
        ),
        (Stacks(), "relu.1", "'relu.0' or 'relu.1' is used in more than one place", "the layer that"),
        (Stacks(), "layer.1", "'layer.0' or 'layer.1' is used in more than one place", "the layer that"),
    ],
)
def test_where_it_is_not_known_the_error_says_why_and_what_to_do(model, name, why, instead):
    with pytest.raises(SiteError, match=f"site '{name}'.*{why}.*{instead}"):
        layers(model, name)


def test_the_error_reaches_who_isolates_and_who_clips():
    router = gr.Router(Block(), {"act": SPEC})
    optimizer = torch.optim.SGD(router.model.parameters(), lr=0.1)
    for call in (lambda: Isolation(router, optimizer), lambda: clip_grad_norm_per_route_(router, 1.0)):
        with pytest.raises(
            SiteError, match="site 'act'.*a ReLU has none.*Put the site on 'up'.*or leave this site out"
        ):
            call()


@pytest.mark.parametrize(
    ("site", "message"),
    [
        (gr.Site(SPEC, dim=1), "dim 1 of the output of '0', which writes its units, need not .* expected dim=-1"),
        (gr.Site(gr.RoutingSpec.one_per_label(5)), "routes 5 units, but the weight of '0', .* has 7 along its dim 0"),
    ],
)
def test_a_site_that_does_not_fit_the_layer_is_refused(site, message):
    router = gr.Router(nn.Sequential(nn.Linear(4, 7), nn.ReLU()), {"1": site})
    with pytest.raises(SiteError, match=f"site '1': .*{message}"):
        clip_grad_norm_per_route_(router, 1.0)
