"""How each operation of a program ties its tensors to each other: which positions of one are those of another.

This is all that is known of operations: one that is not in `_RULES` is one through which no unit can be followed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch.fx import Node

from ...errors import SiteError
from ._exported import IDENTITIES, argument, is_tensor, name_of, place, shape_of

Axis: TypeAlias = "tuple[int, Tensor]"
"""A dimension of a tensor, and something for each position along it, such as whether it is off: bool [size]."""
AxisMap: TypeAlias = "Callable[[int, Tensor], Axis | None]"

ACTIVATIONS: Final = frozenset(
    {"relu", "relu6", "gelu", "silu", "mish", "tanh", "sigmoid", "elu", "selu", "celu", "leaky_relu", "hardtanh"}
    | {"hardswish", "hardsigmoid", "softplus", "softshrink", "hardshrink", "threshold", "log_sigmoid", "erf", "exp"}
    | {"log", "abs", "neg", "pow", "sqrt", "rsqrt", "square", "reciprocal", "clamp", "clamp_min", "clamp_max"}
)
SUMS: Final = frozenset({"add", "sub", "rsub", "where", "masked_fill", "maximum", "minimum"})
PRODUCTS: Final = frozenset({"mul", "div"})
POINTWISE: Final = IDENTITIES | ACTIVATIONS | SUMS | PRODUCTS
VIEWS: Final = frozenset({"view", "reshape", "_unsafe_view", "flatten", "unflatten", "unsqueeze", "squeeze"})
TRANSPOSES: Final = frozenset({"permute", "transpose", "t", "numpy_T"})
ATTENTION: Final = frozenset({"scaled_dot_product_attention", "matmul", "bmm"})
_POOLS = ("max_pool", "avg_pool", "adaptive_avg_pool", "adaptive_max_pool")
POOLS: Final = {
    f"{kind}{n}d": n for kind in (*_POOLS, "upsample_nearest", "_upsample_nearest_exact") for n in (1, 2, 3)
} | {"upsample_linear1d": 1, "upsample_bilinear2d": 2, "upsample_bicubic2d": 2, "upsample_trilinear3d": 3}


class Linear(NamedTuple):
    """The arguments of a linear operation by position, and the dimensions of its weight."""

    x: int
    weight: int
    bias: int
    makes: int
    reads: int


LINEAR: Final = {
    "addmm": Linear(x=1, weight=2, bias=0, makes=1, reads=0),
    **dict.fromkeys(("linear", "conv1d", "conv2d", "conv3d"), Linear(x=0, weight=1, bias=2, makes=0, reads=1)),
    **{f"conv_transpose{n}d": Linear(x=0, weight=1, bias=2, makes=1, reads=0) for n in (1, 2, 3)},
}


@dataclass(frozen=True)
class Edge:
    """Two tensors that an operation ties to each other; each way from an axis of one to that of the other."""

    a: Node
    b: Node
    forth: AxisMap
    back: AxisMap


def edges(node: Node) -> list[Edge]:
    """The edges of one operation; none for an operation of which nothing is known.

    Following an edge raises a `SiteError` where the operation mixes positions, whatever is tied to what.
    """
    rule = _RULES.get(name_of(node))
    return list(rule(node)) if rule is not None else []


def channel_of(node: Node) -> int:
    """The dimension of a linear operation's input and of its output that holds the units."""
    return 1 if name_of(node).startswith("conv") else len(shape_of(node)) - 1


def spreads_evenly(node: Node) -> bool:
    """Whether a linear operation makes of a constant input the same at all positions: at the edges, too."""
    name = name_of(node)
    if not name.startswith("conv"):
        return True
    if name.startswith("conv_transpose"):
        # Which of the kernel's entries reach a position, and how many, is another for each.
        kernel = shape_of(argument(node, 1))[2:]
        settings = [argument(node, 3, 1), *(argument(node, position, 0) for position in (4, 5))]
        return set(kernel) == {1} and [_values(setting) for setting in settings] == [{1}, {0}, {0}]
    padding = argument(node, 4, 0)
    return padding == "valid" or _values(padding) == {0}


def _values(setting: Any) -> set[Any]:
    return set(setting) if isinstance(setting, list | tuple) else {setting}


def regroup(
    values: Tensor, dim: int, old: Sequence[int], new: Sequence[int], fill: Any
) -> Iterator[tuple[int, Tensor]]:
    """Values along one dimension of a tensor, as values along each dimension that a reshape may turn it into.

    Where the positions that come to lie under one do not agree, it is `fill`.
    """
    for old_dims, new_dims in _groups(old, new):
        if dim not in old_dims:
            continue
        spread = values.view([-1 if d == dim else 1 for d in old_dims]).expand([old[d] for d in old_dims])
        spread = spread.reshape([new[d] for d in new_dims])
        for position, new_dim in enumerate(new_dims):
            rows = spread.movedim(position, 0).reshape(new[new_dim], -1)
            first = rows[:, 0]
            agree = (rows == rows[:, :1]).all(1)
            yield new_dim, torch.where(agree, first, torch.full_like(first, fill))


def _groups(old: Sequence[int], new: Sequence[int]) -> Iterator[tuple[list[int], list[int]]]:
    """The smallest groups of neighbouring dimensions that a reshape turns into each other."""
    i = j = 0
    while i < len(old) or j < len(new):
        mine: list[int] = []
        theirs: list[int] = []
        product = other = 1
        while not mine or not theirs or product != other:
            if i < len(old) and (product <= other or j >= len(new)) and not (mine and product == other):
                mine.append(i)
                product *= old[i]
                i += 1
            elif j < len(new):
                theirs.append(j)
                other *= new[j]
                j += 1
            else:
                break
        yield mine, theirs


def _along(a: Node, b: Node, dims: Mapping[int, int]) -> Edge:
    """An edge between equal positions of pairs of dimensions, from those of a to those of b."""
    inverse = {there: here for here, there in dims.items()}

    def follow(pairs: Mapping[int, int]) -> AxisMap:
        return lambda dim, mask: (pairs[dim], mask) if dim in pairs else None

    return Edge(a, b, follow(dims), follow(inverse))


def _refused(a: Node, b: Node, dims: range, why: str) -> Edge:
    """An edge between equal dimensions that cannot be followed along some of them."""

    def follow(dim: int, mask: Tensor) -> Axis | None:
        if dim in dims:
            raise SiteError(why)
        return dim, mask

    return Edge(a, b, follow, follow)


def _piece(whole: Node, part: Node, over: int, start: int) -> Edge:
    """An edge from a tensor to a piece of it along one dimension."""
    size = shape_of(part)[over]

    def forth(dim: int, mask: Tensor) -> Axis | None:
        return dim, mask[start : start + size] if dim == over else mask

    def back(dim: int, mask: Tensor) -> Axis | None:
        if dim != over:
            return dim, mask
        full = torch.zeros(shape_of(whole)[over], dtype=torch.bool)
        full[start : start + size] = mask
        return dim, full

    return Edge(whole, part, forth, back)


# ---------------------------------------------------------------------- one rule for each kind of operation


def _linear(node: Node) -> Iterator[Edge]:
    where = LINEAR[name_of(node)]
    x, weight, bias = argument(node, where.x), argument(node, where.weight), argument(node, where.bias)
    channel, convolves = channel_of(node), name_of(node).startswith("conv")
    if convolves and argument(node, 6, 1) != 1:
        why = f"{place(node)} is a grouped convolution, whose groups must stay of one size."
        yield _refused(x, node, range(len(shape_of(x))), why)
        yield _refused(weight, node, range(len(shape_of(weight))), why)
        return
    if len(shape_of(x)) != len(shape_of(weight)) and convolves:
        why = f"{place(node)} has an input without a batch dimension: give an example that has one."
        yield _refused(x, node, range(len(shape_of(x))), why)
        return
    yield _along(weight, node, {where.makes: channel})
    yield _along(x, weight, {channel: where.reads})
    yield _along(x, node, {0: 0} if convolves else {d: d for d in range(channel)})
    if bias is not None and len(shape_of(bias)) == 1:
        yield _along(bias, node, {0: channel})


def _embedding(node: Node) -> Iterator[Edge]:
    yield _along(argument(node, 0), node, {1: len(shape_of(node)) - 1})


def _pointwise(node: Node) -> Iterator[Edge]:
    out = shape_of(node)
    for operand in node.all_input_nodes:
        if is_tensor(operand):
            shape = shape_of(operand)
            offset = len(out) - len(shape)
            # A dimension of size 1 that is stretched holds no units.
            yield _along(operand, node, {d: d + offset for d, size in enumerate(shape) if size == out[d + offset]})


def _prelu(node: Node) -> Iterator[Edge]:
    x, weight = argument(node, 0), argument(node, 1)
    yield _along(x, node, {d: d for d in range(len(shape_of(x)))})
    if shape_of(weight) != (1,):
        yield _along(weight, node, {0: 1})


def _batch_norm(node: Node) -> Iterator[Edge]:
    yield _along(argument(node, 0), node, {d: d for d in (0, 1)})
    for position in range(1, 5):
        operand = argument(node, position)
        if operand is not None:
            yield _along(operand, node, {0: 1})


def _layer_norm(node: Node) -> Iterator[Edge]:
    ndim = len(shape_of(node))
    yield _refused(
        argument(node, 0),
        node,
        range(ndim - len(argument(node, 1)), ndim),
        f"{place(node)} mixes the units: each is scaled by the mean and variance of all, which change when some are "
        "gone, also where they are 0.",
    )


def _group_norm(node: Node) -> Iterator[Edge]:
    yield _refused(
        argument(node, 0),
        node,
        range(1, len(shape_of(node))),
        f"{place(node)} mixes the units of each group: they are scaled by the mean and variance of all, which change "
        "when some are gone, also where they are 0.",
    )


def _softmax(node: Node) -> Iterator[Edge]:
    over = argument(node, 1) % len(shape_of(node))
    why = f"{place(node)} mixes the units: without some of them the others weigh more."
    yield _refused(argument(node, 0), node, range(over, over + 1), why)


def _view(node: Node) -> Iterator[Edge]:
    """An edge to each dimension that units may come to lie along: whole heads, and features of all heads, say."""

    def follow(old: Node, new: Node, along: int) -> AxisMap:
        def step(dim: int, mask: Tensor) -> Axis | None:
            found = _slices(mask, dim, shape_of(old), shape_of(new))
            if found is None:
                raise SiteError(
                    f"{place(node)} turns a tensor of shape {shape_of(old)} into {shape_of(new)}, and the units are no "
                    "whole slices of it: whole heads can be cut, whole channels, or the same features of all heads, "
                    "and no part of one."
                )
            return (along, found[along]) if along in found else None

        return step

    x = argument(node, 0)
    for d in range(max(len(shape_of(x)), len(shape_of(node)))):
        yield Edge(x, node, follow(x, node, d), follow(node, x, d))


def _slices(mask: Tensor, dim: int, old: Sequence[int], new: Sequence[int]) -> dict[int, Tensor] | None:
    """The whole slices of a reshaped tensor, bool [size] by dimension, that are the units along a dimension of before.

    None where they are more than all of these slices.
    """
    found = {d: whole == 1 for d, whole in regroup(mask.long(), dim, old, new, -1) if new[d] > 1 or old[dim] == 1}
    alone = [d for d, off in found.items() if bool(off.all())]
    if alone:  # all of it, by whichever dimension: by one
        return {alone[0]: found[alone[0]]}
    covered = torch.zeros(tuple(new[d] for d in found), dtype=torch.bool)
    for position, off in enumerate(found.values()):
        covered |= off.view([-1 if n == position else 1 for n in range(len(found))])
    if int(covered.sum()) * old[dim] != int(mask.sum()) * covered.numel():
        return None
    return {d: off for d, off in found.items() if bool(off.any())}


def _transpose(node: Node) -> Iterator[Edge]:
    x, name = argument(node, 0), name_of(node)
    ndim = len(shape_of(x))
    order = list(range(ndim))
    if name == "permute":
        order = [d % ndim for d in argument(node, 1)]
    elif ndim > 1:
        first, second = (argument(node, 1), argument(node, 2)) if name == "transpose" else (0, 1)
        order[first % ndim], order[second % ndim] = order[second % ndim], order[first % ndim]
    yield _along(x, node, {source: position for position, source in enumerate(order)})


def _mean(node: Node) -> Iterator[Edge]:
    x, over, keepdim = argument(node, 0), argument(node, 1), argument(node, 2, False)
    ndim = len(shape_of(x))
    gone = {d % ndim for d in over} if isinstance(over, list | tuple) and over else set(range(ndim))
    left = [d for d in range(ndim) if d not in gone]
    yield _along(x, node, {d: d if keepdim else position for position, d in enumerate(left)})


def _pool(node: Node) -> Iterator[Edge]:
    x = argument(node, 0)
    yield _along(x, node, {d: d for d in range(len(shape_of(x)) - POOLS[name_of(node)])})


def padded_dims(node: Node) -> set[int]:
    """The dimensions along which a padding adds or takes away positions."""
    sizes, last = argument(node, 1), len(shape_of(node)) - 1
    return {last - position // 2 for position, size in enumerate(sizes) if size != 0}


def _pad(node: Node) -> Iterator[Edge]:
    x = argument(node, 0)
    yield _along(x, node, {d: d for d in range(len(shape_of(x))) if d not in padded_dims(node)})


def _split(node: Node) -> Iterator[Edge]:
    x = argument(node, 0)
    yield _along(x, node, {d: d for d in range(len(shape_of(x)))})  # the parts are told apart by `getitem`


def _getitem(node: Node) -> Iterator[Edge]:
    parts, index = node.args
    if not isinstance(parts, Node) or name_of(parts) not in ("split", "split_with_sizes", "chunk", "unbind"):
        return
    if name_of(parts) == "unbind":
        yield _without(parts, node, argument(parts, 1, 0))
        return
    over = argument(parts, 2, 0) % len(shape_of(parts))
    sizes = [int(part.shape[over]) for part in parts.meta["val"]]
    yield _piece(parts, node, over, sum(sizes[: int(index)]))  # type: ignore[arg-type]


def _select(node: Node) -> Iterator[Edge]:
    yield _without(argument(node, 0), node, argument(node, 1))


def _without(whole: Node, part: Node, over: int) -> Edge:
    """An edge from a tensor to what it is at one position of a dimension."""
    ndim = len(shape_of(whole))
    return _along(whole, part, {d: d - (d > over % ndim) for d in range(ndim) if d != over % ndim})


def _slice(node: Node) -> Iterator[Edge]:
    x, over, start = argument(node, 0), argument(node, 1, 0), argument(node, 2)
    over %= len(shape_of(node))
    if argument(node, 4, 1) == 1:
        size = shape_of(x)[over]
        start = 0 if start is None else max(start + size, 0) if start < 0 else min(start, size)
        yield _piece(x, node, over, start)


def _cat(node: Node) -> Iterator[Edge]:
    over = argument(node, 1, 0) % len(shape_of(node))
    start = 0
    for operand in argument(node, 0):
        yield _piece(node, operand, over, start)
        start += shape_of(operand)[over]


def _attention(node: Node) -> Iterator[Edge]:
    query, key, value = (argument(node, position) for position in range(3))
    last = len(shape_of(node)) - 1
    for operand in (query, key, value):
        if shape_of(operand)[: last - 1] == shape_of(node)[: last - 1]:
            yield _along(operand, node, {d: d for d in range(last - 1)})
        else:
            why = f"{place(node)} shares keys and values between heads, so that no head can be cut alone."
            yield _refused(operand, node, range(last + 1), why)
    yield _along(query, node, {last - 1: last - 1})
    yield _along(value, node, {last: last})


def _matmul(node: Node) -> Iterator[Edge]:
    ndim = len(shape_of(node))
    for operand, own in ((argument(node, 0), ndim - 2), (argument(node, 1), ndim - 1)):
        shape = shape_of(operand)
        offset = ndim - len(shape)
        dims = {d: d + offset for d in range(len(shape) - 2) if shape[d] == shape_of(node)[d + offset]}
        yield _along(operand, node, dims | {own - offset: own})


_RULES: Final[dict[str, Callable[[Node], Iterator[Edge]]]] = {
    **dict.fromkeys(LINEAR, _linear),
    **dict.fromkeys(POINTWISE, _pointwise),
    **dict.fromkeys(VIEWS, _view),
    **dict.fromkeys(TRANSPOSES, _transpose),
    **dict.fromkeys(POOLS, _pool),
    **dict.fromkeys(("split", "split_with_sizes", "chunk", "unbind"), _split),
    **dict.fromkeys(("layer_norm", "rms_norm"), _layer_norm),
    **dict.fromkeys(("matmul", "bmm"), _matmul),
    "scaled_dot_product_attention": _attention,
    "group_norm": _group_norm,
    "batch_norm": _batch_norm,
    "embedding": _embedding,
    "prelu": _prelu,
    "softmax": _softmax,
    "mean": _mean,
    "pad": _pad,
    "expand": _pointwise,  # an operand that is stretched to a given size
    "getitem": _getitem,
    "select": _select,
    "slice": _slice,
    "cat": _cat,
}
