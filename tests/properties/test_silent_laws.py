"""The laws of silent units, held against a reference that takes one example at a time."""

from __future__ import annotations

import json
import pickle

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import gradroute as gr
from gradroute import Route, RoutingSpec  # names that a spec's repr uses
from gradroute.testing import assert_routed, label_tensors, oracle_mask, specs
from gradroute.testing._oracle import along, oracle_silent
from gradroute.testing._strategies import silent_specs

of_any_width = silent_specs()
seeds = st.integers(0, 2**16)
SPECIAL = [float("inf"), float("-inf"), float("nan"), -0.0]


def tensor(shape, seed: int, dtype=torch.float64, *, special=False) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
    if special:
        chosen = torch.randint(0, 3 * len(SPECIAL), tuple(shape), generator=generator)
        for position, value in enumerate(SPECIAL):
            x[chosen == position] = value
    return x


@st.composite
def cases(draw):
    """A spec with silent units, labels, the shape of a tensor that they fit, and its routed dim from either end."""
    spec = draw(of_any_width)
    others = draw(st.lists(st.integers(1, 3), min_size=1, max_size=3))
    dim = draw(st.integers(0, len(others)))
    shape = (*others[:dim], spec.width, *others[dim:])
    labels = draw(label_tensors(spec, tuple(others[: draw(st.integers(1, len(others)))])))
    return spec, labels, shape, draw(st.sampled_from([dim, dim - len(shape)]))


def examples(labels: Tensor) -> list[Tensor]:
    return [labels[i : i + 1] for i in range(len(labels))]


# ------------------------------------------------------------------ specs


@given(st.data())
def test_the_silent_mask_is_what_the_definition_says_for_every_kind_of_labels(data):
    spec = data.draw(specs())
    shape = tuple(data.draw(st.lists(st.integers(0, 3), max_size=3)))
    labels = data.draw(label_tensors(spec, shape))
    assert torch.equal(spec.silent_mask(labels), oracle_silent(spec, labels))
    assert not spec.mask(labels)[spec.silent_mask(labels)].any(), "what is off is not taught"


@given(st.data())
def test_what_is_off_for_a_label_is_what_those_that_it_names_teach_alone(data):
    spec = data.draw(of_any_width)
    off = spec.silent_mask(spec.encode([*spec.labels, gr.UNLABELED]))
    for label, row in zip([*spec.labels, gr.UNLABELED], off, strict=True):
        named = spec.silent.get(label, ())
        silent = [other for other in spec.labels if other != label] if named == "others" else named
        assert tuple(row.nonzero().flatten().tolist()) == spec.exclusive(*silent)
        assert label == gr.UNLABELED or not set(spec.exclusive(label)) & set(spec.exclusive(*silent))


@given(of_any_width)
def test_silence_survives_every_round_trip(spec):
    for again in (
        eval(repr(spec)),
        RoutingSpec.from_dict(json.loads(json.dumps(spec.to_dict()))),
        pickle.loads(pickle.dumps(spec)),
        spec.repeat(1),
    ):
        assert again == spec
        assert hash(again) == hash(spec)
        assert again.silent == spec.silent
        assert torch.equal(again.masks.off[again.masks.row_of_label], spec.masks.off[spec.masks.row_of_label])
    without = RoutingSpec(spec.routes, spec.width, shared=spec.shared, unlabeled=spec.unlabeled)
    assert without != spec


@given(of_any_width, st.integers(1, 3))
def test_repeating_units_repeats_their_silence(spec, k):
    ids = spec.encode([*spec.labels, gr.UNLABELED])
    assert torch.equal(spec.repeat(k).silent_mask(ids), spec.silent_mask(ids).repeat_interleave(k, 1))


# ------------------------------------------------------------------ gr.route


@given(cases(), seeds, st.sampled_from([torch.float64, torch.float32, torch.float16, torch.bfloat16]))
def test_off_units_are_plus_zero_whatever_they_hold_and_all_others_are_bit_for_bit_what_they_were(case, seed, dtype):
    spec, labels, shape, dim = case
    x = tensor(shape, seed, dtype, special=True)
    off = along(oracle_silent(spec, labels), len(shape), dim).expand(shape)
    for grad in (False, True):
        y = gr.route(x.clone().requires_grad_(grad), labels, spec, dim=dim)
        assert (y.shape, y.dtype) == (x.shape, x.dtype)
        integer = {2: torch.int16, 4: torch.int32, 8: torch.int64}[dtype.itemsize]
        assert not y.detach().contiguous().view(integer)[off].any(), "+0, and no -0"
        same = y.detach().contiguous().view(integer) == x.contiguous().view(integer)
        assert same[~off].all()


@given(cases(), seeds)
def test_the_gradient_is_that_of_each_example_alone(case, seed):
    spec, labels, shape, dim = case
    dim %= len(shape)
    if dim == 0:  # examples are the first of the other dims; let them come first
        shape, dim = (shape[1], shape[0], *shape[2:]), 1
    x, weight = tensor((shape[0], 5), seed), tensor((5, *shape[1:]), seed + 1)

    def loss(h):
        return (h.sin() * h + h).sum()

    routed = weight.clone().requires_grad_()
    together = loss(gr.route(torch.tensordot(x, routed, 1), labels, spec, dim=dim))
    together.backward()
    total, values = torch.zeros_like(weight), []
    for i, own in enumerate(examples(labels)):
        off = along(oracle_silent(spec, own), len(shape), dim).expand(1, *shape[1:])
        h = torch.tensordot(x[i : i + 1], weight, 1)
        h[off] = 0
        h.requires_grad_()
        values.append(loss(h))
        values[-1].backward()
        total += torch.tensordot(x[i : i + 1].T, h.grad * along(oracle_mask(spec, own), h.ndim, dim), 1)
    torch.testing.assert_close(routed.grad, total)
    torch.testing.assert_close(together.detach(), torch.stack(values).sum().detach())


@given(cases(), seeds)
def test_off_units_learn_exactly_nothing_even_from_inf_and_nan(case, seed):
    spec, labels, shape, dim = case
    off = along(oracle_silent(spec, labels), len(shape), dim).expand(shape)
    x = tensor(shape, seed).requires_grad_()
    gr.route(x, labels, spec, dim=dim).backward(tensor(shape, seed + 1, special=True))
    assert (x.grad[off] == 0).all()


@given(cases(), seeds)
def test_second_derivatives_are_masked_twice_and_off_units_have_none(case, seed):
    spec, labels, shape, dim = case
    x = tensor(shape, seed).requires_grad_()
    mask = along(oracle_mask(spec, labels), len(shape), dim).double().expand(shape)
    (first,) = torch.autograd.grad(gr.route(x, labels, spec, dim=dim).exp().sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), x)
    torch.testing.assert_close(first, x.exp() * mask)
    torch.testing.assert_close(second, x.detach().exp() * mask * mask)


# ------------------------------------------------------------------ a router, both levels, both ends

WIDTH = 6
MODULES = {
    "Linear": (lambda: nn.Linear(WIDTH, WIDTH), (4, WIDTH), -1),
    "Linear, tokens": (lambda: nn.Linear(WIDTH, WIDTH, bias=False), (4, 3, WIDTH), 2),
    "Conv2d": (lambda: nn.Conv2d(WIDTH, WIDTH, 3, padding=1), (4, WIDTH, 4, 5), 1),
    "LayerNorm": (lambda: nn.LayerNorm(WIDTH), (4, 3, WIDTH), -1),
    "an unknown module": (lambda: nn.Sequential(nn.Linear(WIDTH, 9), nn.Tanh(), nn.Linear(9, WIDTH)), (4, WIDTH), -1),
}
ENDS = (("output",), ("input",), ("output", "input"))
of_width = silent_specs(width=WIDTH, hard=True)


@pytest.mark.parametrize("level", ["activations", "parameters"])
@pytest.mark.parametrize("name", MODULES)
@settings(max_examples=10)
@given(data=st.data())
def test_a_batch_computes_and_learns_what_its_examples_do_one_at_a_time(name, level, data):
    """By hand: of each example the units that are off are cut out of what goes in and what comes out."""
    torch.manual_seed(0)
    make, shape, dim = MODULES[name]
    before, module, after = nn.Linear(shape[-1], shape[-1]), make(), nn.Tanh()
    model = nn.Sequential(before, module, after).double()
    spec, ends = data.draw(of_width), data.draw(st.sampled_from(ENDS))
    labels = data.draw(label_tensors(spec, shape[:1]))
    x = tensor(shape, data.draw(seeds))
    router = gr.Router(model, {"1": [gr.Site(spec, on=end, level=level, dim=dim) for end in ends]})

    def gradients() -> dict[str, Tensor]:
        return {key: torch.zeros_like(p) if p.grad is None else p.grad for key, p in model.named_parameters()}

    with router(labels):
        together = model(x)
        together.square().sum().backward()
    found = gradients()
    model.zero_grad()
    router.remove()
    ones, total = [], {key: torch.zeros_like(value) for key, value in found.items()}
    for i, own in enumerate(examples(labels)):
        off = along(oracle_silent(spec, own), len(shape), dim)
        whole = router_without_silence(model, spec, ends, level, dim)

        def cut(end, off=off):
            return (lambda t: torch.where(off, torch.zeros_like(t), t)) if end in ends else (lambda t: t)

        pre = module.register_forward_pre_hook(lambda _, args, cut=cut: (cut("input")(args[0]),), prepend=True)
        post = module.register_forward_hook(lambda _, __, y, cut=cut: cut("output")(y))
        with whole(own):
            one = model(x[i : i + 1])
            one.square().sum().backward()
        pre.remove(), post.remove(), whole.remove()
        ones.append(one.detach())
        for key, value in gradients().items():
            total[key] += value
        model.zero_grad()
    torch.testing.assert_close(together.detach(), torch.cat(ones))
    torch.testing.assert_close(found, total)


def router_without_silence(model, spec, ends, level, dim):
    """The same routes over the same units, and nothing off: what is cut out by hand teaches nothing anyway.

    But where unlabeled data may teach units that are off for them, they do not: the weight of a norm would learn of
    what is 0 before it, and not after.
    """
    mute = without_silence(spec)
    return gr.Router(model, {"1": [gr.Site(mute, on=end, level=level, dim=dim) for end in ends]})


def without_silence(spec):
    unlabeled = spec.unlabeled
    if unlabeled != "none":  # which no route says: any teaches the shared units, too
        unlabeled = Route(oracle_mask(spec, torch.tensor(gr.UNLABELED)).bool())
    return RoutingSpec(spec.routes, spec.width, shared=spec.shared, unlabeled=unlabeled)


@given(of_width)
def test_the_reference_teaches_what_the_spec_does_and_switches_nothing_off(spec):
    labels, mute = spec.encode([*spec.labels, gr.UNLABELED]), without_silence(spec)
    assert torch.equal(mute.mask(labels), oracle_mask(spec, labels))
    assert not mute.silent_mask(labels).any()


@pytest.mark.parametrize("level", ["activations", "parameters"])
@pytest.mark.parametrize("name", MODULES)
@settings(max_examples=10)
@given(data=st.data())
def test_the_oracle_agrees(name, level, data):
    torch.manual_seed(0)
    make, shape, dim = MODULES[name]
    model = nn.Sequential(nn.Linear(shape[-1], shape[-1]), make(), nn.Tanh())
    spec, ends = data.draw(of_width), data.draw(st.sampled_from(ENDS))
    labels = data.draw(label_tensors(spec, shape[:1], data.draw(st.sampled_from(["integer", "multi-hot"]))))
    sites = [gr.Site(spec, on=end, level=level, dim=dim) for end in ends]
    assert_routed(model, {"1": sites}, tensor(shape, data.draw(seeds), torch.float32), labels)


@pytest.mark.parametrize("level", ["activations", "parameters"])
@settings(max_examples=10, suppress_health_check=[HealthCheck.filter_too_much])
@given(data=st.data())
def test_off_rows_learn_exactly_nothing_and_silence_composes_with_ablation(level, data):
    spec = data.draw(of_width.filter(lambda spec: len(spec.labels) > 1))
    silencing = [label for label in spec.silent if label != gr.UNLABELED]
    alone = [label for label in spec.labels if spec.exclusive(label)]
    assume(silencing and alone)
    label, ablated = data.draw(st.sampled_from(silencing)), data.draw(st.sampled_from(alone))
    layer = nn.Linear(3, WIDTH)
    router = gr.Router(layer, {"": gr.Site(spec, level=level)})
    labels = spec.encode([label] * 4)
    off = spec.silent_mask(labels[:1])[0]
    with router(labels):
        y = layer(torch.randn(4, 3))
        y.backward(torch.full_like(y, torch.inf))
    assert not y[:, off].any()
    for p in layer.parameters():
        assert not p.grad[off].any()
    gone = torch.zeros(WIDTH, dtype=torch.bool).index_fill(0, torch.tensor(spec.exclusive(ablated)), True)
    with router(labels), router.ablated(ablated):
        y = layer(torch.randn(4, 3))
    assert not y[:, off | gone].any()
    assert y[:, ~(off | gone)].all()
    with torch.no_grad():
        assert layer(torch.randn(4, 3)).all(), "outside of a block nothing is silent"
