"""`Program`: the exported program of a model while units are off, and how to read its nodes."""

from __future__ import annotations

import operator
import warnings
from collections.abc import Collection, Sequence
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.fx import Node

from ... import _torch_private as private
from ...errors import SiteError, preview

# Operations whose result is their first argument, at most in another dtype or layout.
IDENTITIES: Final = frozenset(
    {"to", "_to_copy", "clone", "contiguous", "alias", "detach", "dropout", "feature_dropout"}
)


class Program:
    """The exported program of a model while units are off: it says itself where they go off, and what reads them.

    Args:
        model: The model, inside the ``with router.ablated(...)`` block.
        args: Its arguments by position.
        kwargs: Its arguments by name.
        sites: The name of each site's module, the dimension of its units, and which of them stay on (bool [width]; one
            for all where the spec has one unit).
        silent: The names of modules that have sites of one unit, and of which all that comes out is off.

    Attributes:
        graph: The operations, in the order in which they run.
        names: From the nodes of parameters and buffers, by name, to their names in the model.
        buffers: The names of those that are buffers.
        tensors: The tensors behind all nodes that are parameters, buffers or constants, by the name of the node.
        seeds: Where units go off: by node, the dimension, and which units stay on.
        silent: Where all that comes out of a module goes off.
        live: The nodes that the program's result depends on.

    Raises:
        SiteError: The model cannot be exported, or does not run a site.
    """

    def __init__(
        self,
        model: nn.Module,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        sites: Sequence[tuple[str, int, Tensor]],
        silent: Collection[str] = (),
    ) -> None:
        try:
            with torch.no_grad(), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                program = torch.export.export(model, args, kwargs, strict=False)
        except Exception as error:
            raise SiteError(
                f"{type(model).__name__} cannot be exported by torch.export on this example, so that it cannot be seen "
                f"which weights make and read the units ({type(error).__name__}: {first_line(error)}). Put sites on "
                "the layers that make or read them: ablate_ then needs no export."
            ) from error
        signature = program.graph_signature
        self.graph = program.graph
        self.buffers = set(signature.inputs_to_buffers.values())
        self.names = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
        held = {**program.constants, **program.state_dict}
        self.tensors: dict[str, Tensor] = {
            node: held[name] for node, name in {**self.names, **signature.inputs_to_lifted_tensor_constants}.items()
        }
        self.seeds = self._find_seeds(model, sites)
        self.silent = set(self._find_seeds(model, [(name, -1, torch.zeros(1, dtype=torch.bool)) for name in silent]))
        self.live: set[Node] = set()
        for node in reversed(self.graph.nodes):
            if node.op == "output" or node in self.live:
                self.live |= {node, *(node.all_input_nodes if node not in self.silent else ())}

    def _find_seeds(self, model: nn.Module, sites: Sequence[tuple[str, int, Tensor]]) -> dict[Node, tuple[int, Tensor]]:
        """Find what the router's hooks have added to the program: ``torch.where(keep, x, 0)``."""
        modules = dict(model.named_modules(remove_duplicate=False))
        seeds: dict[Node, tuple[int, Tensor]] = {}
        silent = dict.fromkeys(name for name, _, _ in sites)
        for node in self.graph.nodes:
            if name_of(node) != "where" or not is_tensor(argument(node, 1)) or argument(node, 2) != 0:
                continue
            condition = argument(node, 0)
            shape = shape_of(condition)
            while name_of(condition) in IDENTITIES | {"view", "reshape"}:
                condition = argument(condition, 0)
            constant = self.tensors.get(condition.name)
            for name, dim, keep in sites:
                ndim = len(shape_of(node))
                fits = shape == tuple(len(keep) if d == dim % ndim else 1 for d in range(ndim))
                here = modules.get(module_of(node)) is modules[name]  # a module may have several names
                if here and fits and constant is not None and torch.equal(constant.cpu(), keep.cpu()):
                    seeds[node] = dim % ndim, keep.cpu().expand(shape_of(node)[dim])
                    silent.pop(name, None)
        if silent:
            raise SiteError(f"the sites {preview(silent, 3)} did not run on this example: give one that uses them.")
        return seeds


def name_of(node: Node) -> str:
    """The name of a node's operation, the same for the in-place form; empty for what is no operation."""
    if node.target is operator.getitem:
        return "getitem"
    schema = private.schema(node.target)
    return str(schema.name).split("::")[-1].removesuffix("_") if schema is not None else ""


def shape_of(node: Node) -> tuple[int, ...]:
    """The shape of a node's tensor; of the tensor that was split, for a node that holds its parts."""
    if name_of(node) in ("split", "split_with_sizes", "chunk", "unbind"):
        return shape_of(argument(node, 0))
    return tuple(node.meta["val"].shape)


def is_tensor(node: Any) -> bool:
    """Whether an argument is a node that holds a tensor."""
    return isinstance(node, Node) and isinstance(node.meta.get("val"), Tensor)


def argument(node: Node, position: int, default: Any = None) -> Any:
    """An operation's argument, whether it was passed by position or by name."""
    if position < len(node.args):
        return node.args[position]
    schema = private.schema(node.target)
    return node.kwargs.get(schema.arguments[position].name, default) if position < len(schema.arguments) else default


def module_of(node: Node) -> str:
    """The qualified name of the innermost module that runs a node."""
    stack = node.meta.get("nn_module_stack")
    return str(next(reversed(stack.values()))[0]) if stack else ""


def place(node: Node) -> str:
    """Where in the model a node is, for messages."""
    module = module_of(node)
    return f"{name_of(node) or node.name} in {module!r}" if module else f"{name_of(node) or node.name}"


def first_line(error: Exception) -> str:
    """The first line of an error's message."""
    return next(iter(str(error).strip().splitlines()), "")
