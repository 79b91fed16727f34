"""What units that are off are worth further on in a program: 0 where they go off, and f(0) behind a function f."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final, TypeAlias

import torch
from torch import Tensor, nn
from torch.fx import Node

from . import _axis_rules as links
from ._exported import IDENTITIES, Program, argument, is_tensor, name_of, shape_of

Values: TypeAlias = "dict[tuple[Node, int], Tensor]"

VARIES: Final = float("nan")
"""The value of a position that is not the same for every input."""

# Of these, the result is constant wherever the first operand is.
_PASSING: Final = frozenset(
    {"embedding", "mean", "expand", "split", "split_with_sizes", "chunk", "unbind", "getitem", "select", "slice"}
    | links.TRANSPOSES
    | {pool for pool in links.POOLS if not pool.startswith("avg")}  # which averages the padding too
)
# Of these, the result is 0 wherever one of these operands is.
_ZERO_OF: Final = {
    **dict.fromkeys(links.POOLS, (0,)),
    "scaled_dot_product_attention": (2,),
    **dict.fromkeys(("matmul", "bmm"), (0, 1)),
}


def constants(program: Program) -> Values:
    """The constants in a program, whatever its input, in one pass through its operations.

    Returns:
        For a tensor and one of its dimensions, the value at each position (float64 [size]) where all entries at that
        position are one constant; NaN at the others. Nothing for a dimension along which all positions vary.
    """
    known: Values = {}
    for node in program.graph.nodes:
        for dim, values in _axes(node, program, known):
            if not bool(values.isnan().all()):
                known[node, dim] = values
    return known


def _axes(node: Node, program: Program, known: Values) -> Iterator[tuple[int, Tensor]]:
    if node.name in program.tensors:
        tensor = program.tensors[node.name].detach()
        if tensor.ndim and tensor.numel() == max(tensor.shape):
            yield tensor.shape.index(max(tensor.shape)), tensor.flatten().cpu().double()
        elif tensor.numel():
            for dim in range(tensor.ndim):
                others = [d for d in range(tensor.ndim) if d != dim]
                yield dim, torch.where((tensor != 0).any(others).cpu(), VARIES, torch.zeros((), dtype=torch.double))
    elif node in program.silent:
        yield from ((dim, torch.zeros(size, dtype=torch.double)) for dim, size in enumerate(shape_of(node)))
    elif node in program.seeds:
        x = argument(node, 1)
        seed_dim, keep = program.seeds[node]
        for dim in {seed_dim, *_dims(x, known)}:
            inner = _known(x, dim, known)
            yield dim, torch.where(keep, inner, 0) if dim == seed_dim else inner
    else:
        yield from _RULES.get(name_of(node), _rest)(node, known)


def _dims(x: Node, known: Values) -> list[int]:
    return [dim for dim in range(len(shape_of(x))) if (x, dim) in known]


def _known(x: Node, dim: int, known: Values) -> Tensor:
    values = known.get((x, dim))
    return torch.full((shape_of(x)[dim],), VARIES, dtype=torch.double) if values is None else values


def _pointwise(node: Node, known: Values) -> Iterator[tuple[int, Tensor]]:
    shape, name = shape_of(node), name_of(node)
    operands = [operand for operand in node.all_input_nodes if is_tensor(operand)]
    dims = {dim - len(shape_of(x)) + len(shape) for x in operands for dim in _dims(x, known)}
    for dim in sorted(dims):
        size = shape[dim]

        def value(operand: Any, dim: int = dim, size: int = size) -> Any:
            if not is_tensor(operand):
                return operand
            own = dim - len(shape) + len(shape_of(operand))
            found = known.get((operand, own))
            return torch.full((size,), VARIES, dtype=torch.double) if found is None else found.expand(size).clone()

        args, kwargs = torch.fx.map_arg(node.args, value), torch.fx.map_arg(node.kwargs, value)
        tensors = [arg for arg in (*args, *kwargs.values()) if isinstance(arg, Tensor)]
        if name in IDENTITIES:
            scaled = name.endswith("dropout") and argument(node, 2)  # one that is on in evaluation too
            yield dim, torch.where(tensors[0] == 0, 0.0, VARIES) if scaled else tensors[0]
        elif name in ("where", "masked_fill"):
            # Whatever the condition: constant where both branches are the same.
            one, other = (torch.as_tensor(value(argument(node, n))) for n in ((1, 2) if name == "where" else (0, 2)))
            yield dim, torch.where(one == other, one, VARIES).expand(size)
        else:
            result: Tensor = node.target(*args, **kwargs)  # type: ignore[operator]
            varies = torch.stack([tensor.isnan() for tensor in tensors]).any(0)  # whatever the operation makes of NaN
            result = torch.where(varies, VARIES, result)
            if name in links.PRODUCTS:
                factors = tensors if name == "mul" else [value(argument(node, 0))]
                for factor in factors:
                    result = torch.where(torch.as_tensor(factor) == 0, 0.0, result)
            yield dim, result


def _view(node: Node, known: Values) -> Iterator[tuple[int, Tensor]]:
    x = argument(node, 0)
    for dim in _dims(x, known):
        yield from links.regroup(known[x, dim], dim, shape_of(x), shape_of(node), VARIES)


def _linear(node: Node, known: Values) -> Iterator[tuple[int, Tensor]]:
    """Of weights that are 0, the bias is what is left."""
    where = links.LINEAR[name_of(node)]
    weight, bias = argument(node, where.weight), argument(node, where.bias)
    grouped = name_of(node).startswith("conv_transpose") and argument(node, 6, 1) != 1
    if (weight, where.makes) in known and not grouped and (bias is None or len(shape_of(bias)) == 1):
        yield links.channel_of(node), _where_0(known[weight, where.makes], bias, known)


def _where_0(weight: Tensor, bias: Node | None, known: Values) -> Tensor:
    return torch.where(weight == 0, 0.0 if bias is None else _known(bias, 0, known), VARIES)


# Of norms of one dimension, of which each entry is scaled and shifted: weight and bias, and the dimension.
_NORMS: Final = {"layer_norm": (2, 3, -1), "rms_norm": (2, None, -1), "group_norm": (2, 3, 1)}


def _norm(node: Node, known: Values) -> Iterator[tuple[int, Tensor]]:
    weight_at, bias_at, dim = _NORMS[name_of(node)]
    weight, bias = argument(node, weight_at), None if bias_at is None else argument(node, bias_at)
    if weight is not None and len(shape_of(weight)) == 1 and (weight, 0) in known:
        yield dim % len(shape_of(node)), _where_0(known[weight, 0], bias, known)


def _batch_norm(node: Node, known: Values) -> Iterator[tuple[int, Tensor]]:
    x, of_batch = argument(node, 0), argument(node, 5)
    if not of_batch:
        scale, shift, mean, variance = (
            None if operand is None else _known(operand, 0, known)
            for operand in (argument(node, position) for position in range(1, 5))
        )
        eps, before = argument(node, 7), _known(x, 1, known)[None]
        values = nn.functional.batch_norm(before, mean, variance, scale, shift, False, 0.0, eps)[0]
        if scale is not None:
            values = torch.where(scale == 0, 0.0 if shift is None else shift, values)
        yield 1, values


def _prelu(node: Node, known: Values) -> Iterator[tuple[int, Tensor]]:
    x, slope = argument(node, 0), argument(node, 1)
    for dim in _dims(x, known):
        values = known[x, dim]
        below = _known(slope, 0, known) if dim == 1 or shape_of(slope) == (1,) else VARIES
        yield dim, torch.where(values >= 0, values, values * below)


def _pad(node: Node, known: Values) -> Iterator[tuple[int, Tensor]]:
    x, padded = argument(node, 0), links.padded_dims(node)
    with_constant = bool(padded) and argument(node, 2, "constant") == "constant"
    for dim in set(_dims(x, known)) - padded:
        values = known[x, dim]
        yield dim, torch.where(values == (argument(node, 3) or 0.0), values, VARIES) if with_constant else values


def _cat(node: Node, known: Values) -> Iterator[tuple[int, Tensor]]:
    over = argument(node, 1, 0) % len(shape_of(node))
    for dim in sorted({dim for part in argument(node, 0) for dim in _dims(part, known)}):
        parts = [_known(part, dim, known) for part in argument(node, 0)]
        if dim == over:
            yield dim, torch.cat(parts)
        else:
            yield dim, torch.where((torch.stack(parts) == parts[0]).all(0), parts[0], VARIES)


def _rest(node: Node, known: Values) -> Iterator[tuple[int, Tensor]]:
    name = name_of(node)
    passing = name in _PASSING
    operands = [argument(node, position) for position in ((0,) if passing else _ZERO_OF.get(name, ()))]
    for edge in links.edges(node) if operands else ():
        if edge.b is not node or edge.a not in operands:
            continue
        for dim in _dims(edge.a, known):
            values = known[edge.a, dim]
            passed = edge.forth(dim, values if passing else torch.where(values == 0, 0.0, VARIES))
            if passed is not None:
                there, values = passed
                earlier = known.get((node, there))
                yield there, values if earlier is None else torch.where(values.isnan(), earlier, values)


_RULES: Final[dict[str, Callable[[Node, Values], Iterator[tuple[int, Tensor]]]]] = {
    **dict.fromkeys(links.POINTWISE, _pointwise),
    **dict.fromkeys(links.VIEWS, _view),
    **dict.fromkeys(links.LINEAR, _linear),
    **dict.fromkeys(_NORMS, _norm),
    "batch_norm": _batch_norm,
    "prelu": _prelu,
    "cat": _cat,
    "pad": _pad,
}
