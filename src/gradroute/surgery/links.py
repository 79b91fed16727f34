"""How each operation of an exported program passes units on: which positions of one tensor are those of another."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.fx import Node

from ..errors import SiteError

Axis: TypeAlias = "tuple[int, Tensor]"
"""A dimension of a tensor, and which positions along it: bool [size]."""

# The value of a unit is the same before and after.
IDENTITIES = frozenset({"to", "_to_copy", "clone", "contiguous", "alias", "detach", "dropout", "feature_dropout"})
ACTIVATIONS = frozenset(
    {"relu", "relu6", "gelu", "silu", "mish", "tanh", "sigmoid", "elu", "leaky_relu", "hardtanh", "hardswish"}
    | {"hardsigmoid", "softplus", "log_sigmoid", "erf", "exp", "abs", "neg", "pow", "sqrt", "rsqrt", "square"}
    | {"clamp", "clamp_min", "clamp_max"}
)
SUMS = frozenset({"add", "sub", "rsub", "where", "maximum", "minimum"})
PRODUCTS = frozenset({"mul", "div"})
POINTWISE = IDENTITIES | ACTIVATIONS | SUMS | PRODUCTS
VIEWS = frozenset({"view", "reshape", "_unsafe_view", "flatten", "unflatten", "unsqueeze", "squeeze"})
PIECES = frozenset({"cat", "slice"})
LINEAR = frozenset({"linear", "addmm", "conv1d", "conv2d", "conv3d"})
ATTENTION = frozenset({"scaled_dot_product_attention", "matmul", "bmm"})
_POOLS = {
    f"{kind}{n}d": n
    for kind in ("max_pool", "avg_pool", "adaptive_avg_pool", "adaptive_max_pool", "upsample_nearest")
    for n in (1, 2, 3)
}
POOLS = frozenset(_POOLS)


@dataclass(frozen=True)
class Edge:
    """Two tensors that an operation ties to each other; each way from an axis of one to that of the other."""

    a: Node
    b: Node
    forth: Callable[[int, Tensor], Axis | None]
    back: Callable[[int, Tensor], Axis | None]


def name_of(node: Node) -> str:
    """The name of a node's operation, the same for the in-place form; empty for what is no operation."""
    if node.target is operator.getitem:
        return "getitem"
    schema = getattr(node.target, "_schema", None)
    return str(schema.name).split("::")[-1].removesuffix("_") if schema is not None else ""


def shape_of(node: Node) -> tuple[int, ...]:
    """The shape of a node's tensor; of the tensor that was split, for a node that holds its parts."""
    if name_of(node) in ("split", "split_with_sizes", "chunk"):
        return shape_of(argument(node, 0))
    return tuple(node.meta["val"].shape)


def is_tensor(node: Any) -> bool:
    """Whether an argument is a node that holds a tensor."""
    return isinstance(node, Node) and isinstance(node.meta.get("val"), Tensor)


def argument(node: Node, position: int, default: Any = None) -> Any:
    """An operation's argument, whether it was passed by position or by name."""
    if position < len(node.args):
        return node.args[position]
    schema = node.target._schema  # type: ignore[union-attr]
    return node.kwargs.get(schema.arguments[position].name, default) if position < len(schema.arguments) else default


def place(node: Node) -> str:
    """Where in the model a node is, for messages."""
    stack = node.meta.get("nn_module_stack")
    module = next(reversed(stack.values()))[0] if stack else ""
    return f"{name_of(node) or node.name} in {module!r}" if module else f"{name_of(node) or node.name}"


def module_of(node: Node) -> str:
    """The qualified name of the innermost module that runs a node."""
    stack = node.meta.get("nn_module_stack")
    return str(next(reversed(stack.values()))[0]) if stack else ""


def edges(node: Node) -> list[Edge]:
    """The edges of one operation; none for an operation of which nothing is known.

    Raises:
        SiteError: The operation is known, and mixes units whatever is tied to what.
    """
    name = name_of(node)
    if name in POINTWISE:
        return list(_pointwise(node))
    if name in VIEWS:
        return [_view(argument(node, 0), node)]
    rule = _RULES.get(name)
    if rule is None and name in POOLS:
        rule = _pool
    return list(rule(node)) if rule is not None else []


def along(a: Node, b: Node, dims: Mapping[int, int]) -> Edge:
    """An edge between equal positions of pairs of dimensions, from those of a to those of b."""
    inverse = {there: here for here, there in dims.items()}

    def follow(pairs: Mapping[int, int]) -> Callable[[int, Tensor], Axis | None]:
        return lambda dim, mask: (pairs[dim], mask) if dim in pairs else None

    return Edge(a, b, follow(dims), follow(inverse))


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


def _view(a: Node, b: Node) -> Edge:
    def follow(old: Node, new: Node) -> Callable[[int, Tensor], Axis | None]:
        def step(dim: int, mask: Tensor) -> Axis | None:
            for new_dim, found in regroup(mask.long(), dim, shape_of(old), shape_of(new), -1):
                if bool((found >= 0).all()) and (shape_of(new)[new_dim] > 1 or shape_of(old)[dim] == 1):
                    return new_dim, found.bool()
            raise SiteError(
                f"{place(b)} turns a tensor of shape {shape_of(old)} into {shape_of(new)}, and the units are no whole "
                "slices of it: whole heads, or whole channels, can be cut, and no part of one."
            )

        return step

    return Edge(a, b, follow(a, b), follow(b, a))


def _pointwise(node: Node) -> Iterator[Edge]:
    out = shape_of(node)
    for operand in node.all_input_nodes:
        if is_tensor(operand):
            shape = shape_of(operand)
            offset = len(out) - len(shape)
            # A dimension of size 1 that is stretched holds no units.
            yield along(operand, node, {d: d + offset for d, size in enumerate(shape) if size == out[d + offset]})


def _linear(node: Node) -> Iterator[Edge]:
    x, weight, bias = (argument(node, position) for position in range(3))
    last = len(shape_of(node)) - 1
    yield along(weight, node, {0: last})
    yield along(x, weight, {last: 1})
    yield along(x, node, {d: d for d in range(last)})
    if bias is not None:
        yield along(bias, node, {0: last})


def _addmm(node: Node) -> Iterator[Edge]:
    bias, x, weight = (argument(node, position) for position in range(3))
    yield along(weight, node, {1: 1})
    yield along(x, weight, {1: 0})
    yield along(x, node, {0: 0})
    if len(shape_of(bias)) == 1:
        yield along(bias, node, {0: 1})


def _convolution(node: Node) -> Iterator[Edge]:
    x, weight, bias = (argument(node, position) for position in range(3))
    if argument(node, 6, 1) != 1:
        raise SiteError(f"{place(node)} is a grouped convolution, whose groups must stay of one size.")
    if len(shape_of(x)) != len(shape_of(weight)):
        raise SiteError(f"{place(node)} has an input without a batch dimension: give an example that has one.")
    yield along(weight, node, {0: 1})
    yield along(x, weight, {1: 1})
    yield along(x, node, {0: 0})
    if bias is not None:
        yield along(bias, node, {0: 1})


def _embedding(node: Node) -> Iterator[Edge]:
    yield along(argument(node, 0), node, {1: len(shape_of(node)) - 1})


def _batch_norm(node: Node) -> Iterator[Edge]:
    yield along(argument(node, 0), node, {d: d for d in (0, 1)})
    for position in range(1, 5):
        operand = argument(node, position)
        if operand is not None:
            yield along(operand, node, {0: 1})


def _layer_norm(node: Node) -> Iterator[Edge]:
    normalized = argument(node, 1)
    x = argument(node, 0)
    kept = len(shape_of(x)) - len(normalized)

    def follow(dim: int, mask: Tensor) -> Axis | None:
        if dim >= kept:
            raise SiteError(
                f"{place(node)} mixes the units: each is scaled by the mean and variance of all, which change when "
                "some are gone, also where they are 0."
            )
        return dim, mask

    yield Edge(x, node, follow, follow)


def _softmax(node: Node) -> Iterator[Edge]:
    x, over = argument(node, 0), argument(node, 1)
    ndim = len(shape_of(x))

    def follow(dim: int, mask: Tensor) -> Axis | None:
        if dim == over % ndim:
            raise SiteError(f"{place(node)} mixes the units: without some of them the others weigh more.")
        return dim, mask

    yield Edge(x, node, follow, follow)


def _mean(node: Node) -> Iterator[Edge]:
    x, over, keepdim = argument(node, 0), argument(node, 1), argument(node, 2, False)
    ndim = len(shape_of(x))
    gone = {d % ndim for d in over} if isinstance(over, list | tuple) and over else set(range(ndim))
    left = [d for d in range(ndim) if d not in gone]
    yield along(x, node, {d: d if keepdim else position for position, d in enumerate(left)})


def _pool(node: Node) -> Iterator[Edge]:
    x = argument(node, 0)
    spatial = _POOLS[name_of(node)]
    yield along(x, node, {d: d for d in range(len(shape_of(x)) - spatial)})


def _permute(node: Node) -> Iterator[Edge]:
    x = argument(node, 0)
    ndim = len(shape_of(x))
    order = list(range(ndim))
    if name_of(node) == "permute":
        order = [d % ndim for d in argument(node, 1)]
    else:
        first, second = (0, 1) if name_of(node) in ("t", "numpy_T") else (argument(node, 1), argument(node, 2))
        if ndim > 1:
            order[first % ndim], order[second % ndim] = order[second % ndim], order[first % ndim]
    yield along(x, node, {source: position for position, source in enumerate(order)})


def _split(node: Node) -> Iterator[Edge]:
    x = argument(node, 0)
    yield along(x, node, {d: d for d in range(len(shape_of(x)))})  # the parts are told apart by `getitem`


def _getitem(node: Node) -> Iterator[Edge]:
    parts, index = node.args
    if not isinstance(parts, Node) or name_of(parts) not in ("split", "split_with_sizes", "chunk"):
        return
    over = argument(parts, 2, 0) % len(shape_of(parts))
    sizes = [int(part.shape[over]) for part in parts.meta["val"]]
    start = sum(sizes[: int(index)])  # type: ignore[arg-type]
    yield _piece(parts, node, over, start)


def _slice(node: Node) -> Iterator[Edge]:
    x, over, start = argument(node, 0), argument(node, 1, 0), argument(node, 2)
    over %= len(shape_of(node))
    if argument(node, 4, 1) == 1:
        size = shape_of(x)[over]
        start = 0 if start is None else max(start + size, 0) if start < 0 else min(start, size)
        yield _piece(x, node, over, start)


def _cat(node: Node) -> Iterator[Edge]:
    operands = argument(node, 0)
    over = argument(node, 1, 0) % len(shape_of(node))
    start = 0
    for operand in operands:
        yield _piece(node, operand, over, start)
        start += shape_of(operand)[over]


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


def _attention(node: Node) -> Iterator[Edge]:
    query, key, value = (argument(node, position) for position in range(3))
    last = len(shape_of(node)) - 1
    for operand in (query, key, value):
        if shape_of(operand)[: last - 1] != shape_of(node)[: last - 1]:
            raise SiteError(f"{place(node)} shares keys and values between heads, so that no head can be cut alone.")
        yield along(operand, node, {d: d for d in range(last - 1)})
    yield along(query, node, {last - 1: last - 1})
    yield along(value, node, {last: last})


def _matmul(node: Node) -> Iterator[Edge]:
    a, b = argument(node, 0), argument(node, 1)
    ndim = len(shape_of(node))
    for operand, own in ((a, ndim - 2), (b, ndim - 1)):
        shape = shape_of(operand)
        offset = ndim - len(shape)
        dims = {d: d + offset for d in range(len(shape) - 2) if shape[d] == shape_of(node)[d + offset]}
        yield along(operand, node, dims | {own - offset: own})


_RULES: dict[str, Callable[[Node], Iterator[Edge]]] = {
    "linear": _linear,
    "addmm": _addmm,
    "conv1d": _convolution,
    "conv2d": _convolution,
    "conv3d": _convolution,
    "embedding": _embedding,
    "batch_norm": _batch_norm,
    "layer_norm": _layer_norm,
    "rms_norm": _layer_norm,
    "softmax": _softmax,
    "mean": _mean,
    "permute": _permute,
    "transpose": _permute,
    "t": _permute,
    "split": _split,
    "split_with_sizes": _split,
    "chunk": _split,
    "getitem": _getitem,
    "cat": _cat,
    "slice": _slice,
    "scaled_dot_product_attention": _attention,
    "matmul": _matmul,
    "bmm": _matmul,
}
