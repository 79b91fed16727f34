"""`route`, `RouteMask` and `RouteGradient`: labels and shapes that do not fit, in-place operations, corner cases."""

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks

import gradroute as gr
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


def test_in_place_operation_on_the_result_raises_since_it_would_change_x():
    y = gr.route(torch.zeros(4, 10, requires_grad=True) * 1, torch.arange(4), SPEC)
    with pytest.raises(RuntimeError, match="modified inplace"):
        y.relu_()


def test_labels_changed_in_place_before_backward_raise():
    x, labels = torch.zeros(4, 10, requires_grad=True), torch.arange(4)
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


@pytest.mark.parametrize(
    "labels", [torch.randint(-1, 10, (6, 7)), torch.rand(6, 7, 10) > 0.5, torch.rand(6, 7, 10)], ids=["ids", "sets", "mixtures"]
)  # fmt: skip
def test_nothing_as_large_as_x_is_saved_for_backward(labels):
    packed = []
    x = torch.randn(6, 7, 10, requires_grad=True)
    with saved_tensors_hooks(lambda t: packed.append(t) or t, lambda t: t):
        y = gr.route(x, labels, SPEC)
    assert not packed
    kept = y.grad_fn.mask
    assert kept.labels.numel() == labels.numel()
    tensors = [value for value in vars(kept.table).values() if isinstance(value, torch.Tensor)]
    assert max(t.numel() for t in tensors) == SPEC.table.numel() < x.numel()


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
