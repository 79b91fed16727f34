"""`Flow`: which entries of which parameters belong to the ablated units of a model, found in its exported program."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.fx import Node

from ..errors import SiteError, preview
from . import links
from .links import argument, is_tensor, name_of, place, shape_of
from .program import Program

_VARIES: Final = float("nan")
"""The value of a unit that is not the same for every input."""

# Of these, the result is constant wherever the first operand is.
_PASSING: Final = frozenset(
    {"mean", "permute", "transpose", "t", "split", "split_with_sizes", "chunk", "getitem", "slice"}
    | {pool for pool in links.POOLS if not pool.startswith("avg")}
)
# Of these, the result is 0 wherever one of these operands is.
_KEEPS_ZERO_OF: Final = {
    **dict.fromkeys([*links.POOLS, *_PASSING], (0,)),
    "scaled_dot_product_attention": (2,),
    "matmul": (0, 1),
    "bmm": (0, 1),
}


@dataclass(frozen=True)
class Cut:
    """The entries of one parameter or buffer, along one dimension, that belong to units which are off."""

    name: str
    dim: int
    mask: Tensor  # bool [size]
    reads: bool  # whether what multiplies the units, and not what makes them


@dataclass(frozen=True)
class Fold:
    """A constant that units which are off still bring to a reader, because they are not 0 when they reach it."""

    weight: str
    dim: int
    bias: str
    values: Tensor  # [size of that dimension], 0 where the unit is on


@dataclass(frozen=True)
class Heads:
    """How many heads of an attention go."""

    module: str
    before: int
    gone: int
    size: int


@dataclass
class Plan:
    """All that changes when units go."""

    cuts: list[Cut] = field(default_factory=list)
    folds: list[Fold] = field(default_factory=list)
    heads: list[Heads] = field(default_factory=list)


class Flow:
    """Follows units that are off through a program: back to what makes them, and on to what reads them.

    Every tensor that holds them is found, with the positions that are theirs, until each path has ended in the weights
    that make the units and the weights that read them. What the units are worth on the way is followed too: 0 where
    they go off, and f(0) after an activation function f.

    Raises:
        SiteError: Something else needs the units, or what happens to them is not known.
    """

    def __init__(self, program: Program) -> None:
        self._program = program
        self._masks: dict[tuple[Node, int], Tensor] = {}
        self._values: dict[tuple[Node, int], Tensor] = {}
        self._queue: list[tuple[Node, int]] = []
        for node, (dim, keep) in program.seeds.items():
            self._add(node, dim, ~keep)
        while self._queue:
            self._follow(*self._queue.pop())

    def plan(self) -> Plan:
        """What is to change so that the units are gone, and the function stays that of the ablated model.

        Raises:
            SiteError: The function would change.
        """
        plan = Plan()
        reads: set[Node] = set()
        for node, dim in list(self._masks):
            name = name_of(node)
            if name in links.ATTENTION and dim < len(shape_of(node)) - 2:
                gone = int(self._masks[node, dim].sum())
                plan.heads.append(Heads(links.module_of(node), shape_of(node)[dim], gone, shape_of(node)[-1]))
        for node in self._program.graph.nodes:
            if name_of(node) in links.LINEAR:
                x, weight, bias = _operands(node)
                dim = _contracted(node)
                if (x, dim) in self._masks:
                    reads.add(weight)
                    plan.folds += self._fold(node, x, dim, weight, bias)
        for (node, dim), mask in self._masks.items():
            if node.name in self._program.names:
                is_read = node in reads and dim == _read_dim(node)
                plan.cuts.append(Cut(self._program.names[node.name], dim, mask, is_read))
        return plan

    # ------------------------------------------------------------------ where the units are

    def _add(self, node: Node, dim: int, mask: Tensor) -> None:
        known = self._masks.get((node, dim))
        merged = mask if known is None else known | mask
        if bool(mask.any()) and (known is None or not torch.equal(known, merged)):
            self._masks[node, dim] = merged
            self._queue.append((node, dim))

    def _follow(self, node: Node, dim: int) -> None:
        if node.op == "placeholder" and not self._program.is_constant(node):
            raise SiteError(f"the units are those of the model's own input {node.name!r}, and no layer makes them.")
        if node.op == "placeholder" and node.name not in self._program.names:
            raise SiteError(f"the units meet a constant of their own width in {place(next(iter(node.users)))}.")
        if node.op != "placeholder":
            self._cross(node, node, dim)
        for user in node.users:
            if user.op == "output":
                raise SiteError(
                    f"the units, made in {place(node)}, are part of the model's output: without them it would have "
                    "another shape."
                )
            if user.meta.get("val") is not None:  # and no mere assertion
                self._cross(user, node, dim)

    def _cross(self, operation: Node, node: Node, dim: int) -> None:
        """Follow the units of one tensor through one operation, to all that it ties to them."""
        mask = self._masks[node, dim]
        if operation in self._program.seeds and node is not operation and node is not argument(operation, 1):
            return
        steps = []
        for edge in links.edges(operation):
            if node in (edge.a, edge.b):
                reached = edge.forth(dim, mask) if node is edge.a else edge.back(dim, mask)
                if reached is not None:
                    steps.append((edge.b if node is edge.a else edge.a, *reached))
        if not steps:
            raise SiteError(f"what {place(operation)} makes of the units, in {place(node)}, is not known.")
        if name_of(operation) in links.SUMS and operation not in self._program.seeds:
            self._check_sum(operation, node, dim)
        for other, other_dim, other_mask in steps:
            if not (operation in self._program.seeds and other is argument(operation, 0)):
                self._add(other, other_dim, other_mask)

    def _check_sum(self, operation: Node, node: Node, dim: int) -> None:
        """Refuse a sum with what does not come of the units alone: every one of its entries goes on being needed."""
        out_dim = dim
        if node is not operation:
            out_dim = next(found for end, found in self._ends(operation, node, dim) if end is operation)
        sources = [
            self._sources(summand, own)
            for summand, own in self._ends(operation, operation, out_dim)
            if is_tensor(summand)
        ]
        made = [found for found in sources if found]
        if any(found != made[0] for found in made):
            others = sorted({place(source) for found in made for source in found})
            raise SiteError(
                f"{place(operation)} adds up the units and another tensor, as a residual connection does (from "
                f"{preview(others, 3)}), and all of the sum goes on being needed. Units can be cut only inside of the "
                "branch, between two of its layers."
            )

    def _ends(self, operation: Node, node: Node, dim: int) -> Iterator[tuple[Node, int]]:
        """The tensors that an operation ties to all positions along a dimension of one of them."""
        every = torch.ones(shape_of(node)[dim], dtype=torch.bool)
        for edge in links.edges(operation):
            if node in (edge.a, edge.b):
                reached = edge.forth(dim, every) if node is edge.a else edge.back(dim, every)
                if reached is not None:
                    yield (edge.b if node is edge.a else edge.a), reached[0]

    def _sources(self, node: Node, dim: int) -> set[Node]:
        """What the units of a tensor are made of by operations on each by itself; parameters and constants apart."""
        found, queue, seen = set(), [(node, dim)], set()
        while queue:
            current, own = queue.pop()
            if current in seen:
                continue
            seen.add(current)
            if current in self._program.seeds:
                queue.append((argument(current, 1), own))
            elif current.op != "placeholder" and name_of(current) in links.POINTWISE | links.PIECES:
                queue += self._ends(current, current, own)
            elif not self._program.is_constant(current) and not self._is_view_of_constant(current):
                found.add(current)
        return found

    def _is_view_of_constant(self, node: Node) -> bool:
        while name_of(node) in links.VIEWS:
            node = argument(node, 0)
        return self._program.is_constant(node)

    # ------------------------------------------------------------------ what they are worth

    def _value(self, node: Node, dim: int) -> Tensor:
        """What each position is worth, float [size]: NaN where that is not the same for every input."""
        if (node, dim) not in self._values:
            self._values[node, dim] = torch.full((shape_of(node)[dim],), _VARIES)  # ends a loop, if there were one
            self._values[node, dim] = self._evaluate(node, dim)
        return self._values[node, dim]

    def _evaluate(self, node: Node, dim: int) -> Tensor:
        varies = torch.full((shape_of(node)[dim],), _VARIES)
        name = name_of(node)
        if node.op == "placeholder":
            tensor = self._program.tensors.get(node.name)
            known = tensor is not None and tensor.numel() == len(varies)
            result = tensor.detach().flatten().float().cpu() if tensor is not None and known else varies
        elif node in self._program.seeds:
            seed_dim, keep = self._program.seeds[node]
            inner = self._value(argument(node, 1), dim)
            result = torch.where(keep, inner, 0) if dim == seed_dim else inner
        elif name in links.POINTWISE:
            result = self._evaluate_pointwise(node, dim)
        elif name in links.VIEWS:
            result = self._evaluate_view(node, dim, varies)
        elif name == "batch_norm" and not argument(node, 5):
            result = self._evaluate_batch_norm(node, dim)
        elif name == "cat":
            result = self._evaluate_cat(node, dim)
        else:
            result = self._evaluate_rest(node, dim, varies)
        return result

    def _evaluate_view(self, node: Node, dim: int, varies: Tensor) -> Tensor:
        x = argument(node, 0)
        for old_dim in range(len(shape_of(x))):
            if (x, old_dim) in self._masks:
                found = dict(links.regroup(self._value(x, old_dim), old_dim, shape_of(x), shape_of(node), _VARIES))
                if dim in found:
                    return found[dim]
        return varies

    def _evaluate_cat(self, node: Node, dim: int) -> Tensor:
        parts = [
            self._value(part, dim) if (part, dim) in self._masks else torch.full((shape_of(part)[dim],), _VARIES)
            for part in argument(node, 0)
        ]
        if dim == argument(node, 1, 0) % len(shape_of(node)):
            return torch.cat(parts)
        return torch.where((torch.stack(parts) == parts[0]).all(0), parts[0], _VARIES)

    def _evaluate_batch_norm(self, node: Node, dim: int) -> Tensor:
        scale, shift, mean, variance = (
            None if operand is None else self._program.tensors[operand.name].detach().float().cpu()
            for operand in (argument(node, position) for position in range(1, 5))
        )
        row = self._value(argument(node, 0), dim)[None]
        return nn.functional.batch_norm(row, mean, variance, scale, shift, False, 0.0, argument(node, 7))[0]

    def _evaluate_rest(self, node: Node, dim: int, varies: Tensor) -> Tensor:
        result = varies
        for position in _KEEPS_ZERO_OF.get(name_of(node), ()):
            operand = argument(node, position)
            for edge in links.edges(node):
                if edge.a is operand and edge.b is node:
                    back = edge.back(dim, torch.ones(len(varies), dtype=torch.bool))
                    if back is not None and (operand, back[0]) in self._masks:
                        passed = edge.forth(back[0], self._value(operand, back[0]))
                        if passed is not None:
                            constant = passed[1] if name_of(node) in _PASSING else torch.zeros_like(result)
                            known = ~passed[1].isnan() if name_of(node) in _PASSING else passed[1] == 0
                            result = torch.where(known, constant, result)
        return result

    def _evaluate_pointwise(self, node: Node, dim: int) -> Tensor:
        if name_of(node) in links.IDENTITIES:
            return self._value(argument(node, 0), dim)
        ndim, size = len(shape_of(node)), shape_of(node)[dim]
        zero = torch.zeros(size, dtype=torch.bool)

        def value(operand: Any) -> Any:
            nonlocal zero
            if not is_tensor(operand):
                return operand
            own = dim - ndim + len(shape_of(operand))
            if (operand, own) not in self._masks:
                return torch.full((size,), _VARIES)
            found = self._value(operand, own)
            zero = zero | (found == 0)
            return found.clone()  # the operation may work in place

        args = torch.fx.map_arg(node.args, value)
        result: Tensor = node.target(*args, **torch.fx.map_arg(node.kwargs, value))  # type: ignore[operator]
        return torch.where(zero, 0.0, result) if name_of(node) in links.PRODUCTS else result

    def _fold(self, node: Node, x: Node, dim: int, weight: Node, bias: Node | None) -> Iterator[Fold]:
        """What the units still bring to a reader."""
        mask = self._masks[x, dim]
        values = torch.where(mask, self._value(x, dim), 0)
        if bool(values.isnan().any()):
            raise SiteError(
                f"{place(node)} reads the units, but not only by way of the site: what it reads still varies with the "
                "input. Put the site on the one tensor through which all readers see the units."
            )
        if not bool(values.any()):
            return
        padded = name_of(node).startswith("conv") and argument(node, 4, 0) not in (0, [0], [0, 0], [0, 0, 0], "valid")
        if bias is None or padded or not {weight.name, bias.name} <= set(self._program.names):
            raise SiteError(
                f"when the units are off, {place(node)} still reads a constant other than 0 from them, since what lies "
                "between turns 0 into that, and it has no bias that could make up for it"
                f"{' at the padded edges' if padded and bias is not None else ''}. Put the site behind what lies "
                "between, such as on the norm or the activation function."
            )
        yield Fold(self._program.names[weight.name], _read_dim_of(node), self._program.names[bias.name], values)


def _operands(node: Node) -> tuple[Node, Node, Node | None]:
    """The input, weight and bias of a linear operation."""
    if name_of(node) == "addmm":
        bias, x, weight = (argument(node, position) for position in range(3))
    else:
        x, weight, bias = (argument(node, position) for position in range(3))
    return x, weight, bias


def _contracted(node: Node) -> int:
    """The dimension of a linear operation's input that it sums over."""
    return len(shape_of(node)) - 1 if name_of(node) == "linear" else 1


def _read_dim_of(node: Node) -> int:
    return 0 if name_of(node) == "addmm" else 1


def _read_dim(weight: Node) -> int:
    return next((_read_dim_of(user) for user in weight.users if name_of(user) in links.LINEAR), 1)
