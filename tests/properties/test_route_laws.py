"""The laws of `gradroute.route`, over shapes, dtypes, dims, kinds of labels and kinds of specs."""

from unittest import mock

import torch
from hypothesis import given
from hypothesis import strategies as st

import gradroute as gr
from gradroute.autograd import _functional
from gradroute.testing import label_tensors, oracle, oracle_mask, specs
from gradroute.testing._oracle import along

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
SPECIAL = [float("inf"), float("-inf"), float("nan"), -0.0]


def tensor(shape, dtype, seed, special=False):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
    if special:
        chosen = torch.randint(0, 3 * len(SPECIAL), shape, generator=generator)
        for position, value in enumerate(SPECIAL):
            x[chosen == position] = value
    return x


def gradient(x, upstream, forward):
    x = x.clone().requires_grad_()
    forward(x).backward(upstream)
    return x.grad


def same_bits(a, b):
    """Whether two tensors agree bit for bit, signed zeros included; one NaN is as good as another.

    Which bits a NaN has is not what arithmetic promises: a product by 1 was seen to change those of a bfloat16.
    """
    integer = {2: torch.int16, 4: torch.int32, 8: torch.int64}[a.dtype.itemsize]
    bits = [each.masked_fill(each.isnan(), torch.nan).contiguous().view(integer) for each in (a, b)]
    return a.shape == b.shape and a.dtype == b.dtype and torch.equal(*bits)


@st.composite
def cases(draw, *, hard=False, kind=None, dtypes=DTYPES, min_batch=0, silent=False):
    """A spec, labels, the shape of a tensor that they fit, its routed dim (from either end), and a dtype."""
    spec = draw(specs(hard=hard, silent=silent))
    others = draw(st.lists(st.integers(0, 3), min_size=1, max_size=3))
    others[0] = max(others[0], min_batch)
    dim = draw(st.integers(0, len(others)))
    shape = (*others[:dim], spec.width, *others[dim:])
    covered = draw(st.integers(1, len(others)))
    batch_labels = draw(label_tensors(spec, tuple(others[:covered]), kind))
    return spec, batch_labels, shape, draw(st.sampled_from([dim, dim - len(shape)])), draw(st.sampled_from(dtypes))


seeds = st.integers(0, 2**16)


@given(cases(), seeds)
def test_forward_is_the_identity_bit_for_bit_and_copies_nothing(case, seed):
    spec, batch_labels, shape, dim, dtype = case
    x = tensor(shape, dtype, seed, special=True).requires_grad_()
    y = gr.route(x, batch_labels, spec, dim=dim)
    assert same_bits(y, x)
    assert y.data_ptr() == x.data_ptr()
    assert y.stride() == x.stride()


@given(specs(hard=True, silent=False), st.data(), seeds)
def test_small_tensors_are_routed_bit_for_bit_as_large_ones(spec, data, seed):
    others = data.draw(st.lists(st.integers(0, 3), min_size=1, max_size=3))
    batch_labels = data.draw(label_tensors(spec, tuple(others), "integer")).long()
    shape, dtype = (*others, spec.width), data.draw(st.sampled_from(DTYPES))
    x, upstream = tensor(shape, dtype, seed, special=True), tensor(shape, dtype, seed + 1, special=True)
    ways = []

    def of(x):
        y = gr.route(x, batch_labels, spec)
        ways.append(type(y.grad_fn).__name__)
        return y

    small = gradient(x, upstream, of)
    with mock.patch.object(_functional, "SMALL", -1):
        large = gradient(x, upstream, of)
    assert same_bits(small, large)
    assert ways == ["_RouteSmallBackward", "_RouteBatchBackward"]


@given(cases(silent=True), seeds)
def test_gradient_is_the_upstream_one_times_the_mask(case, seed):
    spec, batch_labels, shape, dim, dtype = case
    x, upstream = tensor(shape, dtype, seed), tensor(shape, dtype, seed + 1)
    mask = along(oracle_mask(spec, batch_labels), len(shape), dim).expand(shape)
    got = gradient(x, upstream, lambda x: gr.route(x, batch_labels, spec, dim=dim))
    torch.testing.assert_close(got, upstream * mask.to(dtype))


@given(cases(hard=True, kind="integer", silent=True) | cases(hard=True, kind="multi-hot", silent=True), seeds)
def test_hard_masks_give_the_gradient_of_the_where_oracle_bit_for_bit(case, seed):
    spec, batch_labels, shape, dim, dtype = case
    x, upstream = tensor(shape, dtype, seed), tensor(shape, dtype, seed + 1, special=True)
    got = gradient(x, upstream, lambda x: gr.route(x, batch_labels, spec, dim=dim))
    assert same_bits(got, gradient(x, upstream, lambda x: oracle(x, batch_labels, spec, dim=dim)))


@given(cases(silent=True), seeds)
def test_gradient_is_exactly_zero_off_route_and_untouched_where_the_weight_is_one(case, seed):
    spec, batch_labels, shape, dim, dtype = case
    upstream = tensor(shape, dtype, seed, special=True)
    mask = along(oracle_mask(spec, batch_labels), len(shape), dim).expand(shape)
    got = gradient(tensor(shape, dtype, seed), upstream, lambda x: gr.route(x, batch_labels, spec, dim=dim))
    assert (got[mask == 0] == 0).all()
    assert same_bits(got[mask == 1], upstream[mask == 1])


@given(cases(min_batch=1), seeds)
def test_a_batch_learns_what_its_examples_learn_one_at_a_time(case, seed):
    spec, batch_labels, shape, dim, _ = case
    dim %= len(shape)
    if dim == 0:  # examples are the first of the other dims; let them come first
        shape, dim = (shape[1], shape[0], *shape[2:]), 1
    x = tensor((shape[0], 5), torch.float64, seed)
    weight = tensor((5, *shape[1:]), torch.float64, seed + 1)

    def loss(h):
        return (h.sin() * h).sum()

    routed = weight.clone().requires_grad_()
    loss(gr.route(torch.tensordot(x, routed, 1), batch_labels, spec, dim=dim)).backward()

    total = torch.zeros_like(weight)
    for example in range(shape[0]):
        h = torch.tensordot(x[example : example + 1], weight, 1).requires_grad_()
        loss(h).backward()
        mask = along(oracle_mask(spec, batch_labels[example : example + 1]), h.ndim, dim)
        total += torch.tensordot(x[example : example + 1].T, h.grad * mask, 1)
    torch.testing.assert_close(routed.grad, total)


@given(st.lists(st.integers(0, 3), min_size=1, max_size=4).filter(any), seeds, st.integers(0, 4))
def test_disjoint_routes_that_cover_all_units_sum_to_the_unrouted_gradient(sizes, seed, batch):
    spec = gr.RoutingSpec.split(dict(enumerate(sizes)))
    x, upstream = tensor((batch, spec.width), torch.float32, seed), tensor((batch, spec.width), torch.float32, seed + 1)

    def of_label(label):
        return gradient(x, upstream, lambda x: gr.route(x, torch.full((batch,), label), spec))

    assert torch.equal(sum(of_label(label) for label in spec.labels), upstream)


@given(cases(min_batch=1, silent=True), seeds, st.randoms(use_true_random=False))
def test_permuting_a_batch_permutes_its_gradients(case, seed, random):
    spec, batch_labels, shape, dim, dtype = case
    dim %= len(shape)
    axis = 1 if dim == 0 else 0  # the batch: the first of the other dims
    order = list(range(shape[axis]))
    random.shuffle(order)
    x, upstream = tensor(shape, dtype, seed), tensor(shape, dtype, seed + 1)
    got = gradient(x, upstream, lambda x: gr.route(x, batch_labels, spec, dim=dim))
    order = torch.tensor(order)
    permuted = gradient(
        x.index_select(axis, order),
        upstream.index_select(axis, order),
        lambda x: gr.route(x, batch_labels[order], spec, dim=dim),
    )
    assert same_bits(permuted, got.index_select(axis, order))


@given(st.data(), seeds)
def test_relabeling_the_spec_and_the_data_alike_changes_nothing(data, seed):
    spec = data.draw(specs(silent=False))
    ids = data.draw(label_tensors(spec, (3,), "integer"))
    names = [gr.UNLABELED if i == gr.UNLABELED else i for i in ids.tolist()]
    if not all(isinstance(label, int) for label in spec.labels):
        names = [spec.labels[i] if i != gr.UNLABELED else i for i in names]
    renamed = gr.RoutingSpec(
        {f"new {label}": route for label, route in spec.routes.items()},
        spec.width,
        shared=spec.shared,
        unlabeled=spec.unlabeled,
    )
    new_ids = renamed.encode([name if name == gr.UNLABELED else f"new {name}" for name in names])
    x, upstream = tensor((3, spec.width), torch.float32, seed), tensor((3, spec.width), torch.float32, seed + 1)
    got = gradient(x, upstream, lambda x: gr.route(x, ids, spec))
    assert torch.equal(got, gradient(x, upstream, lambda x: gr.route(x, new_ids, renamed)))


@given(cases(silent=True), seeds)
def test_routing_twice_multiplies_the_masks(case, seed):
    spec, batch_labels, shape, dim, _ = case
    other = gr.RoutingSpec({0: gr.Route(0, 0.5, elsewhere=0.25)}, spec.width)
    x, upstream = tensor(shape, torch.float64, seed), tensor(shape, torch.float64, seed + 1)
    once = gradient(x, upstream, lambda x: gr.route(x, torch.tensor(0), other, dim=dim))
    got = gradient(
        x, upstream, lambda x: gr.route(gr.route(x, batch_labels, spec, dim=dim), torch.tensor(0), other, dim=dim)
    )
    torch.testing.assert_close(got, once * along(oracle_mask(spec, batch_labels), len(shape), dim).double())


@given(cases(), seeds)
def test_second_derivatives_are_masked_twice(case, seed):
    spec, batch_labels, shape, dim, _ = case
    x = tensor(shape, torch.float64, seed).requires_grad_()
    mask = along(oracle_mask(spec, batch_labels), len(shape), dim).double().expand(shape)
    (first,) = torch.autograd.grad(gr.route(x, batch_labels, spec, dim=dim).pow(3).sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), x)
    torch.testing.assert_close(first, 3 * x**2 * mask)
    torch.testing.assert_close(second, 6 * x.detach() * mask * mask)
