"""`WeightUses`: each use of a parameter in a forward pass, so that the gradient of each can be asked for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.overrides import TorchFunctionMode

from ... import _torch_private as private
from ._unrolled_recurrence import can_unroll, unrolled

# What uses no parameter's values, or hands the parameter itself on.
_NO_USES = {"detach", "grad", "backward", "register_hook", "register_post_accumulate_grad_hook", "retain_grad"}
_ATTRIBUTES = {"__get__", "__set__", "__delete__"}
_TRANSPOSED = tuple(getattr(torch.Tensor, name).__get__ for name in ("T", "mT"))


class WeightUses(TorchFunctionMode):
    """Notes each use of some parameters by a function of torch; recurrent networks run step by step.

    Args:
        parameters: The parameters by their names.

    Attributes:
        parameters: What it was given.
        edges: For each of them that was used, where the gradient of each use arrives, in the order of the calls.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter]) -> None:
        super().__init__()
        self.parameters = parameters
        self._names = {id(parameter): name for name, parameter in parameters.items()}
        self.edges: dict[str, list[GradientEdge]] = {}

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if not torch.is_grad_enabled():
            return function(*args, **kwargs)
        if not kwargs and can_unroll(function, args):
            return unrolled(function, args, self._use)
        name = getattr(function, "__name__", "")
        if name in _NO_USES or (name in _ATTRIBUTES and function not in _TRANSPOSED):
            return function(*args, **kwargs)
        writes = 1 if name.endswith("_") and not name.endswith("__") else 0  # to its first argument
        return function(*args[:writes], *self._in(args[writes:]), **self._in(kwargs))

    def _in(self, nest: Any) -> Any:
        if isinstance(nest, Tensor):
            return self._use(nest)
        if type(nest) in (tuple, list):
            return type(nest)(self._in(item) for item in nest)
        return {key: self._in(item) for key, item in nest.items()} if type(nest) is dict else nest

    def _use(self, tensor: Tensor) -> Tensor:
        name = self._names.get(id(tensor))
        if name is None:
            return tensor
        used = tensor.view_as(tensor)
        if not private.in_backward():  # where a checkpoint runs again what was noted before
            self.edges.setdefault(name, []).append(get_gradient_edge(used))
        return used
