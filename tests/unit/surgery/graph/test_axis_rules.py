"""Each operation of an exported program ties the positions that it ties: told by changing them and looking."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from gradroute.errors import SiteError
from gradroute.surgery.graph._axis_rules import edges

REFUSED = "refused"
ALL = "all"


class Model(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, *operands):
        return self.function(*operands)


# By operation: the function, the shapes of its operands, and for each of these, which of its dimensions can be followed
# and where to: each to itself ("all"), a mapping, or the ones to which following is refused in words.
CASES = {
    "relu": (F.relu, [(2, 3)], [ALL]),
    "power": (lambda x: x**2, [(2, 3)], [ALL]),
    "sum": (lambda x, y: x + y, [(2, 3, 4), (3, 4)], [ALL, {0: 1, 1: 2}]),
    "difference from a number": (lambda x: 1 - x, [(2, 3)], [ALL]),
    "difference": (lambda x, y: x - y, [(2, 3), (2, 3)], [ALL, ALL]),
    "product with what is stretched": (lambda x, y: x * y, [(2, 3, 4), (3, 1)], [ALL, {0: 1}]),
    "quotient": (lambda x, y: x / y, [(2, 3), (3,)], [ALL, {0: 1}]),
    "larger": (lambda x, y: torch.maximum(x, 0 * y), [(2, 3), (2, 3)], [ALL, None]),
    "smaller": (lambda x, y: torch.minimum(x, 100 + y), [(2, 3), (2, 3)], [ALL, None]),
    "masked": (lambda x: x.masked_fill(torch.zeros(3, dtype=torch.bool), 1.0), [(2, 3)], [ALL]),
    "expand": (lambda x: x.expand(4, 2, 3), [(2, 3)], [{0: 1, 1: 2}]),
    "expand one": (lambda x: x.expand(2, 3), [(2, 1)], [{0: 0}]),
    "linear": (F.linear, [(2, 4, 3), (5, 3), (5,)], [{0: 0, 1: 1}, {0: 2}, {0: 2}]),
    "addmm": (lambda x, w, b: torch.addmm(b, x, w), [(2, 3), (3, 5), (5,)], [{0: 0}, {1: 1}, {0: 1}]),
    "addmm of a matrix": (lambda x, w, b: torch.addmm(b, x, w), [(2, 3), (3, 5), (2, 5)], [{0: 0}, {1: 1}, {}]),
    "convolution": (F.conv1d, [(2, 3, 6), (5, 3, 2), (5,)], [{0: 0}, {0: 1}, {0: 1}]),
    "convolution without a batch": (F.conv1d, [(3, 6), (5, 3, 2)], [{0: REFUSED, 1: REFUSED}, None]),
    "grouped convolution": (
        lambda x, w: F.conv1d(x, w, groups=2),
        [(2, 4, 6), (4, 2, 2)],
        [dict.fromkeys(range(3), REFUSED)] * 2,
    ),
    "transposed convolution": (
        lambda x, w, b: F.conv_transpose1d(x, w, b, stride=2, output_padding=1),
        [(2, 3, 6), (3, 5, 2), (5,)],
        [{0: 0}, {1: 1}, {0: 1}],
    ),
    "grouped transposed convolution": (
        lambda x, w: F.conv_transpose1d(x, w, groups=2),
        [(2, 4, 6), (4, 2, 2)],
        [dict.fromkeys(range(3), REFUSED)] * 2,
    ),
    "embedding": (lambda w: F.embedding(torch.arange(3), w), [(3, 4)], [{1: 1}]),
    "PReLU": (lambda x, w: F.prelu(-x, w), [(2, 3, 4), (3,)], [ALL, {0: 1}]),
    "PReLU of one slope": (lambda x, w: F.prelu(-x, w), [(2, 3), (1,)], [ALL, {}]),
    "batch norm": (
        F.batch_norm,
        [(2, 3, 4), (3,), (3,), (3,), (3,)],
        [{0: 0, 1: 1}, *[{0: 1}] * 4],
    ),
    "layer norm": (lambda x: F.layer_norm(x, (4,)), [(2, 3, 4)], [{0: 0, 1: 1, 2: REFUSED}]),
    "group norm": (lambda x: F.group_norm(x, 2), [(2, 4, 5)], [{0: 0, 1: REFUSED, 2: REFUSED}]),
    "softmax": (lambda x: x.softmax(1), [(2, 3, 4)], [{0: 0, 1: REFUSED, 2: 2}]),
    "heads apart": (lambda x: x.view(2, 3, 4), [(2, 12)], [{0: 0, 1: REFUSED}]),
    "flatten": (lambda x: x.flatten(1), [(2, 3, 4)], [{0: 0, 1: 1, 2: 1}]),
    "unsqueeze": (lambda x: x.unsqueeze(1), [(2, 3)], [{0: 0, 1: 2}]),
    "squeeze": (lambda x: x.squeeze(1), [(2, 1, 3)], [{0: 0, 1: 1, 2: 1}]),
    "permute": (lambda x: x.permute(2, 0, 1), [(2, 3, 4)], [{0: 1, 1: 2, 2: 0}]),
    "transpose": (lambda x: x.transpose(0, -1), [(2, 3, 4)], [{0: 2, 1: 1, 2: 0}]),
    "t": (lambda x: x.t(), [(2, 3)], [{0: 1, 1: 0}]),
    "T": (lambda x: x.T, [(2, 3)], [{0: 1, 1: 0}]),
    "mean": (lambda x: x.mean(1), [(2, 3, 4)], [{0: 0, 2: 1}]),
    "mean that keeps": (lambda x: x.mean((-1, 0), keepdim=True), [(2, 3, 4)], [{1: 1}]),
    "mean of all along no dimension": (lambda x: x.mean(dim=[]), [(2, 3)], [{}]),
    "max pool": (lambda x: F.max_pool1d(x, 2), [(2, 3, 4)], [{0: 0, 1: 1}]),
    "average pool": (lambda x: F.avg_pool2d(x, 2), [(2, 3, 4, 4)], [{0: 0, 1: 1}]),
    "adaptive max pool": (lambda x: F.adaptive_max_pool2d(x, 2), [(2, 3, 4, 4)], [None]),
    "upsampling": (lambda x: F.interpolate(x, scale_factor=2), [(2, 3, 4)], [{0: 0, 1: 1}]),
    "upsampling of neighbours": (lambda x: F.interpolate(x, scale_factor=2, mode="nearest-exact"), [(2, 3, 4)], [{0: 0, 1: 1}]),
    "bilinear upsampling": (
        lambda x: F.interpolate(x, scale_factor=2, mode="bilinear"), [(2, 3, 4, 4)], [{0: 0, 1: 1}]
    ),
    "padding": (lambda x: F.pad(x, [1, 0, 0, 0, 2, -1]), [(2, 3, 4, 4)], [{0: 0, 2: 2}]),
    "padding of nothing": (lambda x: F.pad(x, [0, 0, 0, 0]), [(2, 3, 4)], [ALL]),
    "chunk": (lambda x: x.chunk(2, -1)[1], [(2, 6)], [ALL]),
    "split": (lambda x: x.split([1, 3, 2], 1)[1], [(2, 6)], [ALL]),
    "unbind": (lambda x: x.unbind(1)[2], [(2, 3, 4)], [{0: 0, 2: 1}]),
    "select": (lambda x: x[:, 1], [(2, 3, 4)], [{0: 0, 2: 1}]),
    "slice": (lambda x: x[:, 1:4], [(2, 6)], [ALL]),
    "slice from behind": (lambda x: x[:, -2:], [(2, 6)], [ALL]),
    "slice in steps": (lambda x: x[:, ::2], [(2, 6)], [None]),
    "concatenation": (lambda x, y: torch.cat([x, y], -1), [(2, 3), (2, 4)], [None, ALL]),
    "matrix product": (torch.matmul, [(2, 3, 4), (2, 4, 5)], [{0: 0, 1: 1}, {0: 0, 2: 2}]),
    "matrix product of heads that share": (torch.matmul, [(2, 3, 4), (1, 4, 5)], [{0: 0, 1: 1}, {2: 2}]),
    "batched matrix product": (torch.bmm, [(2, 3, 4), (2, 4, 5)], [{0: 0, 1: 1}, {0: 0, 2: 2}]),
    "attention": (
        F.scaled_dot_product_attention,
        [(2, 3, 4, 5)] * 3,
        [{0: 0, 1: 1, 2: 2}, {0: 0, 1: 1}, {0: 0, 1: 1, 3: 3}],
    ),
}  # fmt: skip


@pytest.mark.parametrize(
    ("off", "expected"),
    [
        ([8, 9, 10, 11], {1: [2]}),
        ([3, 7, 11], {2: [3]}),
        ([3, 7, 8, 9, 10, 11], {1: [2], 2: [3]}),
        (list(range(12)), {1: [0, 1, 2]}),
        ([3, 7], None),
        ([3, 7, 8, 9, 10], None),
    ],
    ids=["a head", "a feature of all heads", "both", "all", "a feature of some heads", "part of a head"],
)
def test_units_are_followed_into_whole_slices_along_each_dimension_or_not_at_all(off, expected):
    graph = torch.export.export(Model(lambda x: x.view(2, 3, 4)), (torch.ones(2, 12),), strict=False).graph
    [view] = [node for node in graph.nodes if node.op == "call_function"]
    mask = torch.zeros(12, dtype=torch.bool)
    mask[off] = True
    if expected is None:
        with pytest.raises(
            SiteError, match="whole heads can be cut, whole channels, or the same features of all heads"
        ):
            [edge.forth(1, mask) for edge in edges(view)]
        return
    found = dict(axis for edge in edges(view) if (axis := edge.forth(1, mask)) is not None)
    assert {dim: part.nonzero().flatten().tolist() for dim, part in found.items()} == expected
    back = [axis for dim, part in found.items() for edge in edges(view) if (axis := edge.back(dim, part)) is not None]
    assert all(dim == 1 for dim, _ in back)
    assert torch.equal(torch.stack([part for _, part in back]).any(0), mask)


def follow(graph, start, axis, *, back=False):
    """The axis of the program's output that an axis of one of its inputs becomes, step by step; or backwards."""
    axes = {start: axis}
    nodes = [node for node in graph.nodes if node.op == "call_function"]
    for node in reversed(nodes) if back else nodes:
        for edge in edges(node):
            for here, there, step in ((edge.a, edge.b, edge.forth), (edge.b, edge.a, edge.back)):
                # An operation ties its operands to itself, and some of them to each other: the former is looked at.
                if here in axes and node is (here if back else there) and here is not there:
                    reached = step(*axes[here])
                    if reached is not None:
                        axes[there] = reached
    return axes


@pytest.mark.parametrize("case", CASES)
def test_positions_are_followed_to_where_they_make_a_difference_and_back(case):
    function, shapes, expected = CASES[case]
    generator = torch.Generator().manual_seed(0)
    operands = [torch.rand(shape, generator=generator) + 0.5 for shape in shapes]
    graph = torch.export.export(Model(function), tuple(operands), strict=False).graph
    inputs = [node for node in graph.nodes if node.op == "placeholder" and node.name.startswith("operands")]
    [output] = next(node for node in graph.nodes if node.op == "output").args[0]

    def difference(number, axis, there):
        """At which positions along a dimension the result is another when an operand is, at some of its own."""
        moved = [operand.clone() for operand in operands]
        moved[number].movedim(axis[0], 0)[axis[1]] += 10
        changed = function(*operands) != function(*moved)
        return changed.movedim(there, 0).flatten(1).any(1) if changed.ndim > 1 else changed

    for number, (start, operand, dims) in enumerate(zip(inputs, operands, expected, strict=True)):
        if dims is None:
            continue
        for dim, size in enumerate(operand.shape):
            there = dim if dims == ALL else dims.get(dim)
            for mask in torch.eye(size, dtype=torch.bool):
                if there == REFUSED:
                    with pytest.raises(SiteError):
                        follow(graph, start, (dim, mask))
                    continue
                found = follow(graph, start, (dim, mask)).get(output)
                if there is None:
                    assert found is None
                    continue
                assert found is not None
                assert found[0] == there
                assert torch.equal(difference(number, (dim, mask), there), found[1])
                if found[1].any():  # and not cut off
                    again = follow(graph, output, found, back=True)[start]
                    assert torch.equal(difference(number, again, there), found[1])
