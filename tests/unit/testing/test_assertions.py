"""`assert_routed` passes what is routed, and finds what is not."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import gradroute as gr
from gradroute.router import _hooks as hooks
from gradroute.testing import NotRoutedError, assert_routed, label_tensors, specs

pytestmark = pytest.mark.filterwarnings(r"ignore:`torch\.jit\.script(_method)?` is deprecated")


SPEC = gr.RoutingSpec({0: [0, 1], 1: [2, 3]}, 4)


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.2), nn.LayerNorm(4), nn.Linear(4, 3))


@settings(max_examples=25)
@given(st.data())
def test_a_model_of_ones_own_in_five_lines(data):
    spec = data.draw(specs(width=4))
    labels = data.draw(label_tensors(spec, (5,)))
    on, level = (
        data.draw(st.sampled_from(["output", "input"])),
        data.draw(st.sampled_from(["activations", "parameters"])),
    )
    where = data.draw(st.sampled_from(["3", "2"] if on == "input" else ["0", "2"]))
    assert_routed(net(), {where: gr.Site(spec, on=on, level=level)}, torch.randn(5, 3), labels)


def test_batches_by_name_and_by_position_and_labels_by_pattern():
    model = nn.Bilinear(3, 3, 4)
    x = torch.randn(5, 3)
    assert_routed(model, {"": SPEC}, (x, x))
    assert_routed(model, {"": SPEC}, {"input1": x, "input2": x}, {"": torch.zeros(5, dtype=torch.int64)})


def test_what_is_wrong_is_found(monkeypatch):
    x, labels = torch.randn(5, 3), torch.tensor([0, 1, 0, 0, -1])
    real = hooks.route_mask

    def identity(x, mask, dim, *, replacing):
        return x

    def scaled(x, mask, dim, *, replacing):
        return real(x, mask, dim, replacing=replacing) * 1.001

    def doubled(x, mask, dim, *, replacing):
        return 2 * real(x, mask, dim, replacing=replacing) - x.detach()

    for wrong, message in ((identity, "in which its route leaves none|differs"), (scaled, "changed the loss")):
        monkeypatch.setattr(hooks, "route_mask", wrong)
        with pytest.raises(NotRoutedError, match=message):
            assert_routed(net()[:1], {"0": SPEC}, x, labels)
    monkeypatch.setattr(hooks, "route_mask", doubled)
    with pytest.raises(NotRoutedError, match=r"changed the loss|differs from the oracle's by up to"):
        assert_routed(net()[:1], {"0": SPEC}, x, labels)
    monkeypatch.setattr(hooks, "route_mask", identity)
    with pytest.raises(NotRoutedError, match="'0.weight' has a gradient in 6 entries"):
        assert_routed(net()[:1], {"0": SPEC}, x, torch.zeros(5, dtype=torch.int64))


def test_gradients_that_should_not_be_there_and_ones_that_are_missing_are_found(monkeypatch):
    x, nobody = torch.randn(5, 3), torch.full((5,), gr.UNLABELED)
    spec = gr.RoutingSpec({0: [0, 1], 1: [2, 3]}, 4, unlabeled="none")
    monkeypatch.setattr(hooks, "route_mask", lambda x, mask, dim, *, replacing: x)
    with pytest.raises(NotRoutedError, match=r"'0\.weight' has a gradient, and should have none"):
        assert_routed(net(), {"0": spec}, x, nobody)
    monkeypatch.setattr(hooks, "route_mask", lambda x, mask, dim, *, replacing: x.detach())
    with pytest.raises(NotRoutedError, match=r"'0\.weight' has no gradient, and should have one"):
        assert_routed(net(), {"0": spec}, x, torch.zeros_like(nobody))


def test_random_numbers_and_gradients_of_before_are_left_and_do_no_harm():
    model, x, labels = net(), torch.randn(5, 3), torch.zeros(5, dtype=torch.int64)
    model(x).sum().backward()
    gradients = [parameter.grad.clone() for parameter in model.parameters()]
    state = torch.get_rng_state()
    assert_routed(model, {"0": SPEC}, x, labels)  # the dropout draws the same for all three
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(p.grad, before) for p, before in zip(model.parameters(), gradients, strict=True))


def test_sparse_gradients_and_outputs_without_a_graph_may_be_among_others():
    class Looked(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Embedding(7, 4, sparse=True)

        def forward(self, ids):
            return {"units": self.embed(ids), "ids": ids, "ones": torch.ones(())}

    assert_routed(Looked(), {"embed": SPEC}, torch.arange(5), torch.tensor([0, 1, 0, 0, -1]))
    with pytest.raises(gr.RoutingError, match="no floating tensor with a graph"):
        assert_routed(nn.Identity(), {"": SPEC}, torch.ones(5, 4))
    with pytest.raises(gr.RoutingError, match="its size is not known"):
        assert_routed(net(), {"0": SPEC}, ())


def test_labels_are_drawn_for_sites_that_name_different_ones():
    other = gr.RoutingSpec({"a": [0, 1], "b": [2, 3]}, 4)
    assert_routed(net(), {"0": SPEC, "2": other}, torch.randn(5, 3))
