"""`Program`: the exported program of an ablated model, which says itself where its units go off."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.fx import Node

from ..errors import SiteError, preview
from . import links
from .links import argument, is_tensor, name_of, shape_of


class Program:
    """The exported program of a model while units are off: it says itself where they go off, and what reads them.

    Args:
        model: The model, inside the ``with router.ablated(...)`` block.
        args: Its arguments by position.
        kwargs: Its arguments by name.
        keeps: For each site, by the name of its module, which of its units stay on (bool [width]).

    Raises:
        SiteError: The model cannot be exported, or does not run a site.
    """

    def __init__(
        self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], keeps: list[tuple[str, Tensor, int]]
    ) -> None:
        try:
            with torch.no_grad(), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                program = torch.export.export(model, args, kwargs, strict=False)
        except Exception as error:
            raise SiteError(
                f"{type(model).__name__} cannot be exported on this example, so that nobody knows what reads its units "
                f"({type(error).__name__}: {first_line(error)})."
            ) from error
        self.graph = program.graph
        signature = program.graph_signature
        self.names = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
        self.tensors = {node: _tensor(program, name) for node, name in self.names.items()}
        self._constants = {
            node: program.constants[name] for node, name in signature.inputs_to_lifted_tensor_constants.items()
        }
        self.seeds = self._find_seeds(keeps)

    def is_constant(self, node: Node) -> bool:
        """Whether a node is a parameter, a buffer or a constant, and no activation."""
        return node.op in ("placeholder", "get_attr") and (node.name in self.names or node.name in self._constants)

    def _find_seeds(self, keeps: list[tuple[str, Tensor, int]]) -> dict[Node, tuple[int, Tensor]]:
        """Where units go off: by node, the dimension and which units stay on."""
        seeds: dict[Node, tuple[int, Tensor]] = {}
        found = set()
        for node in self.graph.nodes:
            if name_of(node) != "where" or not is_tensor(argument(node, 1)) or is_tensor(argument(node, 2)):
                continue
            condition = argument(node, 0)
            while isinstance(condition, Node) and name_of(condition) in ("view", "reshape", *links.IDENTITIES):
                condition = argument(condition, 0)
            constant = self._constants.get(condition.name) if isinstance(condition, Node) else None
            for position, (name, keep, dim) in enumerate(keeps):
                if constant is not None and links.module_of(node) == name and torch.equal(constant.cpu(), keep.cpu()):
                    seeds[node] = dim % len(shape_of(node)), keep.cpu()
                    found.add(position)
        silent = [name for position, (name, *_) in enumerate(keeps) if position not in found]
        if silent:
            raise SiteError(f"the sites {preview(silent, 3)} did not run on this example: give one that uses them.")
        return seeds


def _tensor(program: ExportedProgram, name: str) -> Tensor:
    held = program.state_dict.get(name)
    return held if isinstance(held, Tensor) else program.constants[name]


def first_line(error: Exception) -> str:
    """The first line of an error's message."""
    return next(iter(str(error).strip().splitlines()), "")
