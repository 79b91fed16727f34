"""`Flow`: which entries of which parameters belong to the ablated units of a model, found in its exported program."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.fx import Node

from ...errors import SiteError
from .._plan import Cut, Fold, Heads, Plan
from . import _axis_rules as links
from ._constants import VARIES, constants
from ._exported import Program, argument, module_of, name_of, place, shape_of


class Flow:
    """Follows units that are off through a program: back to what makes them, and on to what reads them.

    Every tensor that holds them is found, with the positions along a dimension that are theirs, until each path has
    ended in weights that make the units or that read them. The function stays the same without them if all readers see
    a constant in their place, which is what `values.constants` tells.

    Raises:
        SiteError: Something else needs the units, or what happens to them is not known.
    """

    def __init__(self, program: Program) -> None:
        self._program = program
        self._values = constants(program)
        self._masks: dict[tuple[Node, int], Tensor] = {}
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
        for (node, dim), mask in self._masks.items():
            if node.name in self._program.names:
                plan.cuts.append(Cut(self._program.names[node.name], dim, mask))
            if name_of(node) in links.ATTENTION and dim < len(shape_of(node)) - 2:
                plan.heads.append(Heads(module_of(node), shape_of(node)[dim], int(mask.sum()), shape_of(node)[-1]))
        for node in self._program.graph.nodes:
            where = links.LINEAR.get(name_of(node))
            if where is not None and node in self._program.live:
                plan.folds += self._fold(node, where)
        return plan

    def _add(self, node: Node, dim: int, mask: Tensor) -> None:
        known = self._masks.get((node, dim))
        merged = mask if known is None else known | mask
        if bool(mask.any()) and (known is None or not torch.equal(known, merged)):
            self._masks[node, dim] = merged
            self._queue.append((node, dim))

    def _follow(self, node: Node, dim: int) -> None:
        """Follow the units of one tensor through the operation that makes it, and through all that use it."""
        if node.op != "placeholder":
            self._cross(node, node, dim)
        elif node.name not in self._program.tensors:
            raise SiteError(
                f"the units are those of the model's own input {node.name!r}, and no layer makes them: no weight could "
                "go. Put the site on a layer inside of the model."
            )
        elif node.name not in self._program.names:
            raise SiteError(
                f"{place(next(iter(node.users)))} combines the units with a constant tensor of as many entries, which "
                "no parameter or buffer holds, so that it cannot be made smaller. Register it as a buffer."
            )
        for user in node.users:
            if user.op == "output":
                raise SiteError(
                    f"the units, made in {place(node)}, are part of the model's output: without them it would have "
                    "another shape. Switch the units off where the model is used: `with router.ablated(...)`."
                )
            # What leads into a module that is silent as a whole needs the units no more than a mere assertion does.
            if user.meta.get("val") is not None and user in self._program.live:
                self._cross(user, node, dim)

    def _cross(self, operation: Node, node: Node, dim: int) -> None:
        """Follow the units of one tensor through one operation, to all that it ties to them."""
        if operation in self._program.silent:
            return  # zeros, whatever goes in
        mask = self._masks[node, dim]
        seed = operation in self._program.seeds
        steps = []
        for edge in links.edges(operation):
            if node in (edge.a, edge.b) and not (seed and edge.a is argument(operation, 0)):
                reached = edge.forth(dim, mask) if node is edge.a else edge.back(dim, mask)
                if reached is not None:
                    steps.append((edge.b if node is edge.a else edge.a, *reached))
        if not steps:
            raise SiteError(
                f"what {place(operation)} makes of the units that come from {place(node)} is not known, so that nobody "
                "could say what a model without them computes. Put the site on a layer behind this operation, or "
                "switch the units off where the model is used: `with router.ablated(...)`."
            )
        for other, other_dim, other_mask in steps:
            if other is operation and name_of(operation) in links.SUMS and not seed:
                self._check_sum(operation, other_dim, other_mask)
            self._add(other, other_dim, other_mask)

    def _check_sum(self, operation: Node, dim: int, mask: Tensor) -> None:
        """Refuse to follow units into a sum that is not off itself: what it adds to them goes on being needed."""
        known = self._masks.get((operation, dim))
        if known is not None and not bool((mask & ~known).any()):
            return  # found from behind, where the sum goes off
        values = self._values.get((operation, dim))
        if values is None or bool(values[mask].isnan().any()):
            raise SiteError(
                f"{place(operation)} joins the units with another tensor, as a residual connection does, and all of "
                "the result goes on being needed. Units can be cut only inside of the branch: put the site between two "
                "of its layers."
            )

    def _fold(self, node: Node, where: links.Linear) -> Iterator[Fold]:
        """What the units still bring to a reader."""
        x, weight, bias = (argument(node, position) for position in where[:3])
        dim = links.channel_of(node)
        mask = self._masks.get((x, dim))
        if mask is None:
            return
        values = torch.where(mask, self._values.get((x, dim), torch.full(mask.shape, VARIES, dtype=torch.double)), 0)
        if bool(values.isnan().any()):
            raise SiteError(
                f"{place(node)} reads the units, but not only by way of the site: what it reads is not known to be "
                "constant when they are off. Put the site on the tensor "
                "through which all layers that read the units see them."
            )
        if not bool(values.any()):
            return
        even = links.spreads_evenly(node)
        if bias is None or not even or not {weight.name, bias.name} <= set(self._program.names):
            transposed = name_of(node).startswith("conv_transpose")
            place_of_it = "" if even else " at each position" if transposed else " at the padded edges"
            raise SiteError(
                f"when the units are off, {place(node)} still reads a constant other than 0 from them, since what lies "
                "between turns 0 into that, and it has no bias that could make up for it"
                f"{place_of_it if bias is not None else ''}. Put the site behind what lies "
                "between, such as on the norm or the activation function."
            )
        yield Fold(self._program.names[weight.name], where.reads, self._program.names[bias.name], values)
