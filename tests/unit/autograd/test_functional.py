"""`route`, `RouteMask` and `RouteGradient`: labels and shapes that do not fit, in-place operations, corner cases."""

import gc
import weakref

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint

import gradroute as gr
from gradroute.autograd._functional import SMALL
from gradroute.errors import LabelError, RoutingError

SPEC = gr.RoutingSpec.one_per_label(10)
NAMED = gr.RoutingSpec({"a": 0, "b": [1, 2]}, 10)


@pytest.mark.parametrize(
    ("x", "labels", "spec", "dim", "message"),
    [
        ((4, 10), torch.tensor([0, 1, 2, 10]), SPEC, -1, r"unknown label 10 in the batch.*0, 1, 2.*-1 for unlabeled"),
        ((4, 10), torch.tensor([0, 1, 2, -2]), SPEC, -1, "unknown label -2"),
        ((4, 10), torch.tensor([0, 1, 2, -100]), SPEC, -1, "unknown label -100"),
        ((4, 10), torch.tensor([0, 1, 2, 0]), NAMED, -1, r"unknown label 2 .* the ids 0 to 1 of 'a', 'b'"),
        ((4, 10), torch.tensor([3, 4, 7, 3]), gr.RoutingSpec({3: 0, 7: 1}, 10), -1, r"unknown label 4 .* keys 3, 7"),
        ((4, 10), torch.tensor([0]), SPEC, -1, r"labels of shape \(1,\) do not fit .* expected \(4,\)"),
        ((4, 10), torch.arange(3), SPEC, -1, r"labels of shape \(3,\) do not fit .* expected \(4,\)"),
        ((4, 5, 10), torch.zeros(4, 4).long(), SPEC, -1, r"labels of shape \(4, 4\) .* expected \(4,\) or \(4, 5\)"),
        ((4, 5, 10), torch.zeros(4, 5, 1).long(), SPEC, -1, r"labels of shape \(4, 5, 1\)"),
        ((4, 10, 6, 5), torch.zeros(4, 5).long(), SPEC, 1, r"expected \(4,\) or \(4, 6\) or \(4, 6, 5\)"),
        ((4, 9), torch.arange(4), SPEC, -1, "the spec routes 10 units, but .* has 9 along dim 1: build the spec with width=9"),
        ((4, 10), torch.arange(4), SPEC, 2, r"dim 2 does not exist in a tensor of shape \(4, 10\)"),
        ((4, 10), [0, 1, 2, 3], SPEC, -1, "labels must be a torch.Tensor; got list: RoutingSpec.encode"),
        ((4, 10), None, SPEC, -1, "labels must be a torch.Tensor; got NoneType"),
        ((4, 10), torch.arange(4).float(), SPEC, -1, r"one column per label: expected shape \[..., 10\].*labels.long\(\)"),
        ((4, 10), torch.ones(4, 3).bool(), SPEC, -1, r"bool \(multi-hot\) labels need .* \[..., 10\], got \(4, 3\)"),
        ((10, 10), torch.full((10,), 0.5), SPEC, -1, r"labels of shape \(10,\) do not fit .* expected \(10, 10\)"),
        ((10, 10), torch.ones(10).bool(), SPEC, -1, r"expected \(10, 10\)"),
        ((1, 10), torch.full((1, 10), float("nan")), SPEC, -1, "mixture labels must be finite"),
        ((1, 10), torch.full((1, 10), float("inf")), SPEC, -1, "mixture labels must be finite"),
        ((4, 10), torch.zeros(4, dtype=torch.complex64), SPEC, -1, "integer, bool or floating dtype; got torch.complex64"),
    ],
)  # fmt: skip
def test_labels_that_do_not_fit_are_an_error_in_the_forward_pass(x, labels, spec, dim, message):
    with pytest.raises(LabelError, match=message):
        gr.route(torch.zeros(x, requires_grad=True), labels, spec, dim=dim)


def test_errors_never_print_a_whole_tensor():
    with pytest.raises(LabelError, match=r"100, 101, 102, 103, 104, \.\.\. \(95 more\)"):
        gr.route(torch.zeros(100, 10), torch.arange(100, 200), SPEC)


def test_integer_tensors_carry_no_gradient_to_route():
    with pytest.raises(RoutingError, match=r"only floating tensors carry gradients to route; got torch.int64"):
        gr.route(torch.zeros(4, 10).long(), torch.arange(4), SPEC)


def test_all_errors_are_value_errors():
    assert issubclass(LabelError, gr.RoutingError)
    assert issubclass(gr.RoutingError, ValueError)


@pytest.mark.parametrize("examples", [4, SMALL])
def test_in_place_operation_on_the_result_raises_since_it_would_change_x(examples):
    y = gr.route(torch.zeros(examples, 10, requires_grad=True) * 1, torch.arange(examples) % 10, SPEC)
    with pytest.raises(RuntimeError, match="modified inplace"):
        y.relu_()


@pytest.mark.parametrize("examples", [4, SMALL])
def test_labels_changed_in_place_before_backward_raise(examples):
    x, labels = torch.zeros(examples, 10, requires_grad=True), torch.arange(examples) % 10
    y = gr.route(x, labels, SPEC)
    labels.add_(1)
    with pytest.raises(LabelError, match="changed in place between forward and backward"):
        y.sum().backward()


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64])
def test_every_integer_dtype_holds_labels(dtype):
    x = torch.zeros(4, 10, requires_grad=True)
    gr.route(x, torch.arange(4, dtype=dtype), SPEC).sum().backward()
    assert torch.equal(x.grad, torch.eye(10)[:4])


def test_one_integer_labels_the_whole_batch():
    x = torch.zeros(4, 3, 10, requires_grad=True)
    gr.route(x, torch.tensor(2), SPEC).sum().backward()
    assert torch.equal(x.grad, torch.eye(10)[2].expand(4, 3, 10))


@pytest.mark.parametrize("labels", [torch.zeros(0).long(), torch.zeros(0, 10).bool(), torch.zeros(0, 10)])
def test_an_empty_batch_works(labels):
    x = torch.zeros(0, 10, requires_grad=True)
    gr.route(x, labels, SPEC).sum().backward()
    assert x.grad.shape == (0, 10)


@pytest.mark.parametrize("labels", [torch.full((4,), -1), torch.zeros(4, 10).bool()])
@pytest.mark.parametrize(("unlabeled", "expected"), [("all", [1, 1, 1]), ("none", [0, 0, 0]), ("shared", [0, 0, 1])])
def test_unlabeled_data_follows_the_spec_s_rule(labels, unlabeled, expected):
    spec = gr.RoutingSpec({label: label % 2 for label in range(10)}, 3, shared=2, unlabeled=unlabeled)
    x = torch.zeros(4, 3, requires_grad=True)
    gr.route(x, labels, spec).sum().backward()
    assert torch.equal(x.grad, torch.tensor(expected).float().expand(4, 3))


@pytest.mark.parametrize("kind", ["ids", "sets", "mixtures"])
def test_nothing_as_large_as_x_is_saved_for_backward(kind):
    shape = (SMALL // 10 + 1, 2)
    labels = {"ids": torch.randint(-1, 10, shape), "sets": torch.rand(*shape, 10) > 0.5, "mixtures": torch.rand(*shape, 10)}[kind]  # fmt: skip
    packed = []
    x = torch.randn(*shape, 10, requires_grad=True)
    with saved_tensors_hooks(lambda t: packed.append(t) or t, lambda t: t):
        y = gr.route(x, labels, SPEC)
    assert not packed
    kept = y.grad_fn.mask
    assert kept.labels.numel() == labels.numel()
    tensors = [value for value in vars(kept.table).values() if isinstance(value, torch.Tensor)]
    assert max(t.numel() for t in tensors) == SPEC.table.numel() < x.numel()


def way(y):
    """The name of the node that routes a tensor."""
    return type(y.grad_fn).__name__


class TestLargeTensors:
    """Their mask is made in the backward pass, of a copy of the labels."""

    SPEC = gr.RoutingSpec.one_per_label(10)

    @pytest.mark.parametrize("lowest", [0, gr.UNLABELED])
    def test_the_graph_keeps_no_labels_that_nobody_else_holds(self, lowest):
        x = torch.randn(SMALL, 10, requires_grad=True)
        labels = torch.randint(lowest, 10, (SMALL,))
        expected = self.SPEC.mask(labels)
        y, given = gr.route(x, labels, self.SPEC), weakref.ref(labels)
        assert way(y) == "_RouteBatchBackward"
        del labels
        gc.collect()
        assert given() is None
        y.sum().backward()
        assert torch.equal(x.grad, expected)

    def test_whoever_holds_the_labels_hears_that_they_were_written_to(self):
        x = torch.randn(SMALL, 10, requires_grad=True)
        labels = torch.randint(0, 10, (SMALL,))
        y = gr.route(x, labels, self.SPEC)
        labels.zero_()
        with pytest.raises(LabelError, match="changed in place"):
            y.sum().backward()

    def test_labels_of_which_a_view_was_given_are_what_they_were(self):
        x = torch.randn(SMALL, 10, requires_grad=True)
        every = torch.randint(0, 10, (2, SMALL))
        expected = self.SPEC.mask(every[1])
        y = gr.route(x, every[1], self.SPEC)  # the view is gone at once, and nobody is told of
        every.zero_()
        y.sum().backward()
        assert torch.equal(x.grad, expected)


class TestSmallTensors:
    """Their mask is looked up in the forward pass."""

    def test_a_byte_for_each_element_is_kept_and_the_labels_that_were_given(self):
        packed = []
        x, labels = torch.randn(6, 7, 10, requires_grad=True), torch.randint(0, 10, (6, 7))
        with saved_tensors_hooks(lambda t: packed.append(t) or t, lambda t: t):
            y = gr.route(x, labels, SPEC)
        assert not packed
        keep, given, _, _ = y.grad_fn.kept
        assert keep.dtype == torch.bool
        assert keep.shape == x.shape
        assert given is labels
        assert vars(y.grad_fn).keys() == {"kept"}

    @pytest.mark.parametrize("more", [0, 1])
    @pytest.mark.parametrize("others", [(SMALL // 16,), (SMALL // 64, 4)])
    def test_go_this_way_up_to_a_size(self, others, more):
        others = (others[0] + more, *others[1:])
        x = torch.zeros(*others, 16, requires_grad=True)
        labels = torch.arange(x.numel() // 16).view(others) % 16
        for dim in (-1, len(others)):
            y = gr.route(x, labels, gr.RoutingSpec.one_per_label(16), dim=dim)
            assert way(y) == ("_RouteBatchBackward" if more else "_RouteSmallBackward")

    def test_labels_that_are_written_to_where_nothing_counts_it_move_no_mask(self):
        x, labels = torch.zeros(4, 10, requires_grad=True), torch.arange(4)
        y = gr.route(x, labels, SPEC)
        labels.data.add_(1)
        y.sum().backward()
        assert torch.equal(x.grad, torch.eye(10)[:4])

    def test_no_label_finds_the_row_of_unlabeled_data_by_its_number(self):
        assert len(SPEC.masks.rows) == 11, "ten labels, and unlabeled data"
        for _ in range(2):
            with pytest.raises(LabelError, match="unknown label 10"):
                gr.route(torch.zeros(2, 10, requires_grad=True), torch.tensor([3, 10]), SPEC)

    def test_unlabeled_data_are_met_and_labels_still_checked(self):
        spec = gr.RoutingSpec.one_per_label(3, unlabeled="none")
        for labels, expected in (
            ([0, 2], [[1, 0, 0], [0, 0, 1]]),
            ([-1, 2], [[0, 0, 0], [0, 0, 1]]),
            ([1, -1], [[0, 1, 0], [0, 0, 0]]),
        ):
            x = torch.zeros(2, 3, requires_grad=True)
            y = gr.route(x, torch.tensor(labels), spec)
            assert way(y) == "_RouteSmallBackward"
            y.sum().backward()
            assert x.grad.tolist() == expected
        for unknown in (3, -2):
            with pytest.raises(LabelError, match=f"unknown label {unknown}"):
                gr.route(torch.zeros(1, 3, requires_grad=True), torch.tensor([unknown]), spec)

    @pytest.mark.parametrize(
        "route",
        [
            lambda x: gr.route(x, torch.arange(4) % 2, gr.RoutingSpec({0: gr.Route(0, weight=0.5), 1: 1}, 10)),
            lambda x: gr.route(x, torch.arange(4), gr.RoutingSpec.one_per_label(10, silent="others")),
            lambda x: gr.route(x, torch.eye(10).bool()[:4], SPEC),
            lambda x: gr.route(x, torch.eye(10)[:4], SPEC),
            lambda x: gr.route(x.T, torch.arange(4), SPEC, dim=0),
            lambda x: gr.route(x.cfloat(), torch.arange(4), SPEC),
        ],
        ids=["weights", "silent", "sets", "mixtures", "another dim", "complex"],
    )
    def test_what_is_not_plain_is_not_done_so(self, route):
        assert way(route(torch.zeros(4, 10, requires_grad=True))) == "_RouteBatchBackward"

    def test_labels_of_inference_mode_of_which_no_write_is_counted_are_copied(self):
        with torch.inference_mode():
            labels = torch.arange(4)
        x = torch.zeros(4, 10, requires_grad=True)
        y = gr.route(x, labels, SPEC)
        with torch.inference_mode():
            labels.add_(1)
        y.sum().backward()
        assert torch.equal(x.grad, torch.eye(10)[:4])

    def test_the_mask_of_a_pass_that_is_computed_again_is_that_of_its_first_labels(self):
        """What is saved is made anew then, so nothing that holds a mask may be."""
        labels = [torch.zeros(4, dtype=torch.long)]
        x = torch.zeros(4, 10, requires_grad=True)
        y = checkpoint(lambda x: gr.route(x.sin(), labels[0], SPEC).exp(), x, use_reentrant=False)
        labels[0] = torch.ones(4, dtype=torch.long)
        y.sum().backward()
        assert torch.equal(x.grad, torch.eye(10)[0].expand(4, 10))


@pytest.mark.parametrize("examples", [4, SMALL])
def test_where_no_gradient_arrives_none_goes_on(examples):
    class Stop(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, grad):
            return None

    x = torch.zeros(examples, 10, requires_grad=True)
    Stop.apply(gr.route(x, torch.arange(examples) % 10, SPEC)).sum().backward()
    assert x.grad is None


def test_no_graph_is_built_where_no_gradient_is_wanted():
    x = torch.zeros(4, 10)
    assert gr.route(x, torch.arange(4), SPEC) is x
    with torch.no_grad():
        y = x.requires_grad_()
        assert gr.route(y, torch.arange(4), SPEC) is y


def test_complex_tensors_are_routed():
    x = torch.randn(4, 10, dtype=torch.complex64, requires_grad=True)
    upstream = torch.randn(4, 10, dtype=torch.complex64)
    gr.route(x, torch.arange(4), SPEC).backward(upstream)
    assert torch.equal(x.grad, upstream * torch.eye(10)[:4])


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:FutureWarning")  # torch's own, in forward mode
def test_forward_mode_masks_the_tangent():
    import torch.autograd.forward_ad as forward

    tangent = torch.randn(4, 10)
    with forward.dual_level():
        dual = forward.make_dual(torch.randn(4, 10), tangent)
        routed = forward.unpack_dual(gr.route(dual, torch.arange(4), SPEC)).tangent
    assert torch.equal(routed, tangent * torch.eye(10)[:4])
