"""By which way round a site a gradient reached a parameter: read off the graph of a loss."""

import pytest
import torch
from torch.autograd.graph import get_gradient_edge

import gradroute as gr
from gradroute.autograd import _functional
from gradroute.diagnostics.audit._graph_paths import Paths, nodes


@pytest.fixture(autouse=True, params=["small tensors", "large tensors"])
def _each_way_to_route(request, monkeypatch):
    """By whatever node a tensor is routed, it is known for one."""
    if request.param == "large tensors":
        monkeypatch.setattr(_functional, "SMALL", -1)


SPEC = gr.RoutingSpec.one_per_label(3)
LABELS = torch.tensor([0, 2])


def paths(make):
    """The paths of a loss of h = x w and of z, which is h routed; by `make(h, z, w)`, with what hooks saw of h."""
    w = torch.randn(4, 3, requires_grad=True)
    h = torch.randn(2, 4) @ w
    site = get_gradient_edge(h)
    seen = []
    loss = make(h, gr.route(h, LABELS, SPEC), w, seen)
    return Paths(loss, [site], [get_gradient_edge(tensor) for tensor in seen]), w, site


def side_loss(h, z, w, seen):
    return z.exp().sum() + h.square().mean()


def skip_connection(h, z, w, seen):
    return (z.exp() + h.sin()).square().sum()


def hook(h, z, w, seen):
    seen.append(h)
    return z.exp().sum() + h.abs().mean()


def tied(h, z, w, seen):
    return z.exp().sum() + (torch.ones(3) @ w.t()).sum()


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (side_loss, "side loss"),
        (skip_connection, "skip connection"),
        (hook, "auxiliary hook"),
        (tied, "tied weight"),
        (lambda h, z, w, seen: z.exp().sum(), "unknown path"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_way_round_is_called_by_its_name(make, kind):
    found, w, _ = paths(make)
    assert found.kinds(w) == [kind]


def test_several_ways_are_all_told_the_surest_first():
    found, w, _ = paths(lambda h, z, w, seen: hook(h, z, w, seen) + tied(h, z, w, seen) + skip_connection(h, z, w, []))
    kinds = found.kinds(w)
    assert kinds[0] == "auxiliary hook"
    assert "tied weight" in kinds


def test_a_sites_own_tensor_is_no_weight():
    found, _, site = paths(skip_connection)
    assert found.kinds(site) == ["skip connection"]
    found, _, site = paths(tied)
    assert found.kinds(site) == ["unknown path"], "the weight goes round, and the tensor does not"


def test_a_loss_for_each_example_is_a_loss_and_no_activation():
    found, w, _ = paths(lambda h, z, w, seen: (z.exp().sum(1) + h.square().sum(1)).mean())
    assert found.kinds(w) == ["side loss"]


def test_all_nodes_are_found_once():
    x = torch.ones(2, requires_grad=True)
    y = x.exp()
    z = y * y + y
    found = nodes([z.grad_fn])
    assert len(found) == 4, "the sum, the product, the exponential, and what gathers the gradient"
    assert y.grad_fn in found
