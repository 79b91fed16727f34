"""DTensors: whatever part of a tensor a process holds, it is masked as the whole one is."""

import math

import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor, init_device_mesh
from torch.testing._internal.distributed.fake_pg import FakeStore

import gradroute as gr
from gradroute.autograd._distributed import HeldPart
from gradroute.autograd._functional import masked_by
from gradroute.autograd._functions import masked
from gradroute.errors import LabelError, RoutingError

MESHES = ((2,), (4,), (2, 2))


@pytest.fixture
def processes():
    """Makes this process one of several, which never speak to each other."""

    def become(rank, mesh):
        if dist.is_initialized():
            dist.destroy_process_group()
        dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=math.prod(mesh))
        return init_device_mesh("cpu", mesh)

    yield become
    if dist.is_initialized():
        dist.destroy_process_group()


def part_of(whole, mesh, placements):
    """By `torch.chunk`, one axis of the mesh after the other, as the documentation of `Shard` says it."""
    for axis, placement in enumerate(placements):
        if placement.is_shard():
            chunks = whole.chunk(mesh.size(axis), placement.dim)
            rank = mesh.get_local_rank(axis)
            whole = chunks[rank] if rank < len(chunks) else whole.narrow(placement.dim, 0, 0)
    return whole


def held(whole, mesh, placements):
    local = part_of(whole, mesh, placements).clone()
    return DTensor.from_local(local, mesh, placements, run_check=False, shape=whole.shape, stride=whole.stride())


@st.composite
def divisions(draw):
    """A tensor's shape, a dimension of units, labels for the leading others, and how processes divide it."""
    shape = tuple(draw(st.lists(st.integers(1, 5), min_size=1, max_size=3)))
    dim = draw(st.integers(0, len(shape) - 1))
    others = shape[:dim] + shape[dim + 1 :]
    labeled = others[: draw(st.integers(0, len(others)))]
    mesh = draw(st.sampled_from(MESHES))
    placement = st.one_of(
        st.builds(Shard, st.integers(0, len(shape) - 1)),
        st.just(Replicate()),
        st.sampled_from([Partial(), Partial("avg")]),
    )
    placements = tuple(draw(placement) for _ in mesh)
    kind = draw(st.sampled_from(["ids", "multi-hot", "mixture"] if labeled else ["ids"]))
    rank = draw(st.integers(0, math.prod(mesh) - 1))
    return shape, dim, labeled, kind, mesh, placements, rank, draw(st.booleans()), draw(st.integers(0, 2**16))


@settings(max_examples=200, deadline=None)
@given(division=divisions())
def test_the_part_of_the_product_is_the_product_of_the_parts(division):
    shape, dim, labeled, kind, mesh_shape, placements, rank, soft, seed = division
    generator = torch.Generator().manual_seed(seed)
    width = shape[dim]
    routes = {"a": gr.Route(range(0, width, 2), weight=0.5 if soft else 1.0), "b": gr.Route([width - 1])}
    spec = gr.RoutingSpec(routes, width, unlabeled="none")
    labels = torch.randint(-1, 2, labeled, generator=generator)
    if kind != "ids":
        labels = torch.stack([labels == 0, labels == 1], -1)
    if kind == "mixture":
        labels = labels.float() * 0.75
    gradient = torch.randn(shape, generator=generator)
    mask = spec.masks.resolve(labels)
    expected = masked_by(gradient, mask, dim)
    dense = torch.rand(shape[1:], generator=generator).round()  # any mask that broadcasts
    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=math.prod(mesh_shape))
    try:
        mesh = init_device_mesh("cpu", mesh_shape)
        distributed = held(gradient, mesh, placements)
        for differentiable in (False, True):  # as in a backward pass, and in one of which derivatives are wanted
            with torch.set_grad_enabled(differentiable):
                got = masked_by(distributed, mask, dim)
            assert got.placements == distributed.placements
            assert got.shape == gradient.shape
            torch.testing.assert_close(got.to_local(), part_of(expected, mesh, placements))
        by_tensor = masked(distributed, dense)
        torch.testing.assert_close(by_tensor.to_local(), part_of(masked(gradient, dense), mesh, placements))
    finally:
        dist.destroy_process_group()


def test_a_held_part_says_where_it_begins(processes):
    mesh = processes(3, (4,))
    assert HeldPart(held(torch.zeros(2, 7), mesh, [Shard(1)])).starts == [0, 6]
    assert HeldPart(held(torch.zeros(2, 7), mesh, [Shard(-1)])).starts == [0, 6]


def test_a_single_unit_is_the_mask_of_any_part(processes):
    mesh = processes(1, (2,))
    mask = gr.RoutingSpec({"a": 0, "b": []}, 1).masks.resolve(torch.tensor([0, 1]))
    with torch.no_grad():
        got = masked_by(held(torch.ones(2, 6), mesh, [Shard(1)]), mask, 1)
    assert torch.equal(got.to_local(), torch.tensor([[1.0] * 3, [0.0] * 3]))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_what_is_closed_stays_exactly_zero_also_where_the_gradient_is_not_finite(processes, dtype):
    mesh = processes(1, (2,))
    mask = gr.RoutingSpec.one_per_label(4).masks.resolve(torch.tensor([3, 0]))
    gradient = torch.full((2, 4), math.inf, dtype=dtype)
    with torch.no_grad():
        got = masked_by(held(gradient, mesh, [Shard(1)]), mask, 1).to_local()
    assert torch.equal(got, torch.tensor([[0, math.inf], [0, 0]], dtype=dtype))


def test_a_second_derivative_is_masked_each_time(processes):
    mesh = processes(0, (2,))
    x = held(torch.ones(2, 4), mesh, [Shard(1)]).requires_grad_()
    spec = gr.RoutingSpec({"a": gr.Route(0, weight=0.5), "b": gr.Route([2, 3])}, 4)
    y = gr.route(x, torch.tensor([0, 1]), spec)
    (first,) = torch.autograd.grad((y * y * y).to_local().sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.to_local().sum(), x)
    assert torch.equal(first.to_local().detach(), torch.tensor([[0.5 * 3, 0.0], [0.0, 0.0]]))
    assert torch.equal(second.to_local(), torch.tensor([[0.5 * 0.5 * 6, 0.0], [0.0, 0.0]]))


class TestRefused:
    SPEC = gr.RoutingSpec.one_per_label(6)
    LABELS = torch.zeros(2).long()

    def test_parts_that_are_unequal_and_do_not_say_so(self, processes):
        """`DTensor.from_local` takes the shape of each for that of all."""
        mesh = processes(1, (2,))
        x = DTensor.from_local(torch.ones(2, 3, requires_grad=True), mesh, [Shard(1)], run_check=False)
        assert gr.route(x, self.LABELS, self.SPEC).shape == (2, 6)
        lying = DTensor.from_local(torch.ones(2, 2), mesh, [Shard(1)], run_check=False, shape=(2, 6), stride=(6, 1))
        with pytest.raises(
            RoutingError, match=r"should have a part of shape \(2, 3\) in this process, and has \(2, 2\)"
        ):
            gr.route(lying.requires_grad_(), self.LABELS, self.SPEC)

    @pytest.mark.parametrize("reduction", ["max", "min", "product"])
    def test_parts_that_do_not_add_up(self, processes, reduction):
        mesh = processes(0, (2,))
        x = DTensor.from_local(torch.ones(2, 6), mesh, [Partial(reduction)], run_check=False).requires_grad_()
        with pytest.raises(RoutingError, match="expected Shard, Replicate, or Partial sums. Redistribute it before"):
            gr.route(x, self.LABELS, self.SPEC)

    def test_a_shard_that_is_no_rectangle(self, processes):
        placements = dist.tensor.placement_types
        if not hasattr(placements, "_StridedShard"):
            pytest.skip("this torch has none")
        mesh = processes(0, (2,))
        x = DTensor.from_local(
            torch.ones(2, 3),
            mesh,
            [placements._StridedShard(1, split_factor=3)],
            run_check=False,
            shape=(2, 6),
            stride=(6, 1),
        )
        with pytest.raises(RoutingError, match="cannot be routed: expected Shard"):
            gr.route(x.requires_grad_(), self.LABELS, self.SPEC)

    def test_labels_that_are_divided(self, processes):
        mesh = processes(0, (2,))
        x = distribute_tensor(torch.ones(2, 6), mesh, [Replicate()]).requires_grad_()
        with pytest.raises(LabelError, match=r"labels are a DTensor: .* labels.full_tensor\(\)"):
            gr.route(x, distribute_tensor(self.LABELS, mesh, [Replicate()]), self.SPEC)

    @pytest.mark.parametrize(("shape", "labels"), [((2, 3), (2,)), ((2, 2, 6), (2, 4))], ids=["units", "tokens"])
    def test_a_plain_tensor_of_which_others_hold_the_rest_says_what_to_do(self, processes, shape, labels):
        x, labels = torch.ones(shape, requires_grad=True), torch.zeros(labels).long()
        with pytest.raises(LabelError) as alone:
            gr.route(x, labels, self.SPEC)
        assert "parallelism" not in str(alone.value)
        processes(0, (2,))
        with pytest.raises(
            LabelError, match="But if tensor parallelism or sequence parallelism has divided the tensor"
        ):
            gr.route(x, labels, self.SPEC)
