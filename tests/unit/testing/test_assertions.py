"""`assert_routed` passes what is routed, and finds what is not."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import gradroute as gr
from gradroute.autograd import _functional
from gradroute.router import _hooks as hooks
from gradroute.router import _site_mask
from gradroute.testing import NotRoutedError, assert_routed, label_tensors, specs
from gradroute.testing import _assertions as assertions

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

    def identity(x, mask, dim, *, replacing, broadcast):
        return x

    def scaled(x, mask, dim, **options):
        return real(x, mask, dim, **options) * 1.001

    def doubled(x, mask, dim, **options):
        return 2 * real(x, mask, dim, **options) - x.detach()

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
    monkeypatch.setattr(hooks, "route_mask", lambda x, mask, dim, *, replacing, broadcast: x)
    with pytest.raises(NotRoutedError, match=r"'0\.weight' has a gradient, and should have none"):
        assert_routed(net(), {"0": spec}, x, nobody)
    monkeypatch.setattr(hooks, "route_mask", lambda x, mask, dim, *, replacing, broadcast: x.detach())
    with pytest.raises(NotRoutedError, match=r"'0\.weight' has no gradient, and should have one"):
        assert_routed(net(), {"0": spec}, x, torch.zeros_like(nobody))


class SelfAttention(nn.Module):
    def __init__(self):
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(4, 4) for _ in range(3))

    def forward(self, x):
        return (self.query(x) @ self.key(x).mT).softmax(-1) @ self.value(x)


def leaky(name, entry, size):
    """A router under which so much reaches one entry of one parameter past all masks."""

    class Leaky(gr.Router):
        def __init__(self, model, sites):
            super().__init__(model, sites)
            leak = torch.zeros_like(model.get_parameter(name))
            leak[entry] = size
            model.get_parameter(name).register_hook(lambda gradient: gradient + leak)

    return Leaky


#: Modules of `net`, and an entry that a site on them closes where unit 2 is closed.
CLOSED = {
    ("0", "output", "activations"): ("0.weight", (2, 1)),
    ("0", "output", "parameters"): ("0.bias", 2),
    ("2", "output", "activations"): ("2.weight", 2),
    ("2", "output", "parameters"): ("2.bias", 2),
    ("2", "input", "activations"): ("0.bias", 2),
    ("2", "input", "parameters"): ("2.weight", 2),
    ("3", "input", "activations"): ("2.bias", 2),
    ("3", "input", "parameters"): ("3.weight", (1, 2)),
}


@pytest.mark.parametrize("soft", [False, True], ids=["hard", "soft"])
@pytest.mark.parametrize("case", CLOSED, ids=str)
def test_the_smallest_leak_into_what_the_masks_close_is_found_and_one_into_the_rest_within_the_tolerance_not(
    monkeypatch, case, soft
):
    (module, on, level), (name, entry) = case, CLOSED[case]
    spec = gr.RoutingSpec({0: gr.Route([0, 1], weight=0.5), 1: [2, 3]}, 4) if soft else SPEC
    sites = {module: gr.Site(spec, on=on, level=level)}
    x, smallest = torch.randn(5, 3), torch.finfo(torch.float32).tiny
    monkeypatch.setattr(assertions, "Router", leaky(name, entry, smallest))
    assert_routed(net(), sites, x, torch.tensor([0, 0, 0, 0, 1]))
    with pytest.raises(NotRoutedError, match=f"'{name}' has a gradient in 1 entries in which its route leaves none"):
        assert_routed(net(), sites, x, torch.zeros(5, dtype=torch.int64))


@pytest.mark.parametrize("end", [{}, {"on": "input", "level": "parameters"}], ids=["upstream", "what reads"])
def test_what_is_0_by_mathematics_alone_is_not_what_the_masks_close(monkeypatch, end):
    """Softmax does not see the bias of the keys, so its gradient is some 1e-10 or 0 as the processor rounds."""
    model = nn.Sequential(SelfAttention(), nn.Linear(4, 4))
    x = torch.randn(5, 1, 4).repeat(1, 2, 1)  # two tokens alike: the gradients of the scores are exactly 0
    sites = {"0" if end else "1": gr.Site(SPEC, **end)}

    def run(name, entry, size):
        monkeypatch.setattr(assertions, "Router", leaky(name, entry, size))
        assert_routed(model, sites, x, torch.zeros(5, dtype=torch.int64))

    for key in range(4):
        run("0.key.bias", key, 1e-10)
    name, entry = ("0.key.weight", (0, 2)) if end else ("1.weight", (2, 0))
    with pytest.raises(NotRoutedError, match=f"'{name}' has a gradient in 1 entries"):
        run(name, entry, 1e-30)


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


@pytest.mark.parametrize("level", ["activations", "parameters"])
@pytest.mark.parametrize("what", ["forward", "gradient"])
def test_silence_that_is_lost_is_found(level, what, monkeypatch):
    quiet = gr.RoutingSpec({"a": [0, 1], "b": 2}, 4, silent={"a": "b"})
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 4), nn.Tanh())

    def loss(model, x):
        return model(x).exp().sum()  # whose slope at 0 is not 0

    sites, x, ids = {"1": gr.Site(quiet, level=level)}, torch.randn(6, 3), torch.tensor([0, 1, 0, -1, 1, 0])
    assert_routed(model, sites, x, ids, loss=loss)

    def lost(x, mask, dim, **_):
        off = torch.zeros_like(x, dtype=torch.bool) if what == "forward" else mask.off(x.device)
        return torch.where(off, 0, x) if what == "forward" else x - torch.where(off, x.detach(), 0)

    monkeypatch.setattr(_functional, "silenced", lost)
    monkeypatch.setattr(_site_mask, "silenced", lost)
    if (level, what) == ("activations", "gradient"):
        assert_routed(model, sites, x, ids, loss=loss)  # the mask is 0 there, too
        return
    with pytest.raises(NotRoutedError):
        assert_routed(model, sites, x, ids, loss=loss)
