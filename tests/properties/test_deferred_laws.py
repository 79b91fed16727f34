"""Labels that come after the forward pass teach bit for bit what they would have taught before it."""

from __future__ import annotations

import contextlib

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers.pytorch_utils import Conv1D

import gradroute as gr
from architectures import ARCHITECTURES, BATCH, TIME
from gradroute.testing import label_tensors, specs

WIDTH = 6
WHERE = ("in the block", "after it", "in a block of other labels")

# Layers by their names in `Layers`, with the dimension of their units and the batch's leading shape there.
KNOWN = {"linear": (-1, (BATCH, TIME)), "transposed": (-1, (BATCH, TIME)), "norm": (-1, (BATCH, TIME))}
UNKNOWN = {"convolution": (1, (BATCH, TIME)), "mlp": (-1, (BATCH, TIME))}


class Layers(nn.Module):
    """Layers of known kinds, and one of an unknown kind, which draws random numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.transposed, self.norm = nn.Linear(WIDTH, WIDTH), Conv1D(WIDTH, WIDTH), nn.LayerNorm(WIDTH)
        self.convolution = nn.Conv1d(WIDTH, WIDTH, 3, padding=1)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 9), nn.ReLU(), nn.Dropout(0.3), nn.Linear(9, WIDTH))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.transposed(torch.tanh(self.linear(x))))
        return self.mlp(torch.tanh(self.convolution(x.mT).mT))


def learned(model, loss, block, when):
    """The loss, and the gradient of each parameter, of a block to which `when` belongs."""
    model.zero_grad()
    torch.manual_seed(1)  # of dropout
    with block as entered:
        value = loss()
        if when[0] == "in the block":
            when[1](entered)
            value.backward()
    if when[0] != "in the block":
        when[1](entered)
        with when[2]():
            value.backward()
    return value.detach(), {name: parameter.grad for name, parameter in model.named_parameters()}


def assert_the_same(a, b):
    assert torch.equal(a[0], b[0])
    for name, gradient in a[1].items():
        other = b[1][name]
        assert (gradient is None) == (other is None), name
        assert gradient is None or torch.equal(gradient, other), name


def assert_deferred_is_labeled(model, sites, loss, labels, data):
    """Early or late, copied: what is written to the label tensor after `set` moves nothing."""
    router = gr.Router(model, sites)
    early = learned(model, loss, router(labels), ("after it", lambda _: None, contextlib.nullcontext))
    given_labels = labels.clone()

    def set_and_scribble(later):
        later.set(given_labels)
        given_labels.zero_()

    where = data.draw(st.sampled_from(WHERE))
    other = (lambda: router(torch.full((BATCH,), gr.UNLABELED))) if where == WHERE[2] else contextlib.nullcontext
    late = learned(model, loss, router.deferred(), (where, set_and_scribble, other))
    router.remove()
    assert_the_same(early, late)


def spec_of_width(width):
    return specs(max_width=min(width, 12)).map(
        lambda spec: gr.RoutingSpec(dict(spec.routes), width, shared=spec.shared, unlabeled=spec.unlabeled)
    )


@pytest.mark.parametrize("architecture", ARCHITECTURES.values(), ids=ARCHITECTURES.keys())
@settings(max_examples=5)
@given(data=st.data())
def test_on_any_architecture(architecture, data):
    torch.manual_seed(0)
    model, x = architecture.build(), architecture.inputs()
    spec = data.draw(spec_of_width(architecture.width))
    shape = (BATCH, TIME) if architecture.tokens and data.draw(st.booleans()) else (BATCH,)
    labels = data.draw(label_tensors(spec, shape))
    on = data.draw(
        st.sampled_from(["output", "input"] if architecture.inputs_too and not architecture.index else ["output"])
    )
    index = architecture.index if on == "output" else None
    site = gr.Site(spec, on=on, dim=architecture.dim, index=index)
    assert_deferred_is_labeled(model, {architecture.pattern: site}, lambda: architecture.loss(model, x), labels, data)


@settings(max_examples=40)
@given(data=st.data())
def test_on_the_parameters_of_known_layers_at_both_ends_and_of_others_at_their_output(data):
    torch.manual_seed(0)
    model, x = Layers(), torch.randn(BATCH, TIME, WIDTH)
    spec = data.draw(specs(WIDTH, silent=False))
    labels = data.draw(label_tensors(spec, data.draw(st.sampled_from([(BATCH,), (BATCH, TIME)]))))
    chosen = data.draw(st.lists(st.sampled_from([*KNOWN, *UNKNOWN]), min_size=1, unique=True))
    sites = {}
    for name in chosen:
        ends = [["output"], ["input"], ["output", "input"]] if name in KNOWN else [["output"]]
        level = data.draw(st.sampled_from(["parameters", "activations"]))
        dim = (KNOWN | UNKNOWN)[name][0]
        sites[name] = [gr.Site(spec, on=on, level=level, dim=dim) for on in data.draw(st.sampled_from(ends))]
    assert_deferred_is_labeled(model, sites, lambda: model(x).tanh().sum(), labels, data)


@settings(max_examples=40)
@given(data=st.data())
def test_labels_are_refused_for_what_they_would_have_been_refused_in_the_forward_pass(data):
    """With the same words; and nothing is set, so that the right ones can follow."""
    torch.manual_seed(0)
    spec = data.draw(specs(WIDTH, silent=False))
    name = data.draw(st.sampled_from([*KNOWN, "convolution"]))
    dim = (KNOWN | UNKNOWN)[name][0]
    level = data.draw(st.sampled_from(["parameters", "activations"]))
    on = data.draw(st.sampled_from(["output", "input"] if name in KNOWN or level == "activations" else ["output"]))
    shape = tuple(data.draw(st.lists(st.integers(1, BATCH), max_size=3)))
    labels = data.draw(label_tensors(spec, shape))
    model = Layers()
    router = gr.Router(model, {name: gr.Site(spec, on=on, level=level, dim=dim)})
    x = torch.randn(BATCH, TIME, WIDTH)
    early = late = None
    try:
        with router(labels):
            model(x)
    except gr.RoutingError as error:
        early = error
    with router.deferred() as later:
        loss = model(x).sum()
    try:
        later.set(labels)
    except gr.RoutingError as error:
        late = error
    assert type(early) is type(late)
    assert str(early) == str(late)
    if late is not None:
        assert later.labels is None
        with pytest.raises(gr.RoutingError, match="labels were not set"):
            loss.backward(retain_graph=True)
        later.set(torch.full((BATCH,), gr.UNLABELED))
        loss.backward()


@settings(max_examples=15)
@given(data=st.data())
def test_several_blocks_before_one_backward_each_have_their_own_labels(data):
    torch.manual_seed(0)
    model = Layers().eval()
    spec = data.draw(specs(WIDTH, silent=False))
    level = data.draw(st.sampled_from(["parameters", "activations"]))
    router = gr.Router(model, {"linear": gr.Site(spec, level=level), "mlp": gr.Site(spec, level=level)})
    batches = [(torch.randn(BATCH, TIME, WIDTH), data.draw(label_tensors(spec, (BATCH,)))) for _ in range(3)]
    model.zero_grad()
    total = torch.zeros(())
    for x, labels in batches:
        with router(labels):
            total = total + model(x).sum()
    total.backward()
    early = total.detach(), {name: p.grad for name, p in model.named_parameters()}
    model.zero_grad()
    total, waiting = torch.zeros(()), []
    for x, _ in batches:
        with router.deferred() as later:
            total = total + model(x).sum()
        waiting.append(later)
    for number in data.draw(st.permutations(range(3))):
        waiting[number].set(batches[number][1])
    total.backward()
    assert_the_same(early, (total.detach(), {name: p.grad for name, p in model.named_parameters()}))
