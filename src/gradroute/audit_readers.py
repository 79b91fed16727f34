"""Which weights read which columns of what: the calls of linear maps and norms in a forward pass."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode


@dataclass(frozen=True)
class Reading:
    """One weight reading one tensor.

    Attributes:
        weight: The name of the parameter.
        dim: The dimension of the parameter whose entries each read one column of the tensor.
        bias: The name of the parameter that is added to what it reads.
        columns: The tensor with its columns first, [n_columns, anything].
    """

    weight: str
    dim: int
    bias: str | None
    columns: Tensor


Found: TypeAlias = "tuple[Tensor, int, Tensor, int, Tensor | None]"
"""A tensor, the dimension of its columns, a weight, the dimension that reads them, a bias."""


def _argument(args: tuple[Any, ...], kwargs: dict[str, Any], position: int, name: str) -> Any:
    return args[position] if position < len(args) else kwargs.get(name)


def _of_linear(args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Found]:
    x, weight, bias = (_argument(args, kwargs, i, name) for i, name in enumerate(("input", "weight", "bias")))
    return [(x, -1, weight, 1, bias)]


def _of_matmul(args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Found]:
    x, weight = (_argument(args, kwargs, i, name) for i, name in enumerate(("input", "other")))
    return [(x, -1, weight, 0, None)] if weight.ndim == 2 else []


def _of_addmm(args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Found]:
    bias, x, weight = (_argument(args, kwargs, i, name) for i, name in enumerate(("input", "mat1", "mat2")))
    return [(x, -1, weight, 0, bias)]


def _of_convolution(args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Found]:
    x, weight, bias = (_argument(args, kwargs, i, name) for i, name in enumerate(("input", "weight", "bias")))
    ungrouped = _argument(args, kwargs, 6, "groups") in (None, 1) and x.ndim == weight.ndim
    return [(x, 1, weight, 1, bias)] if ungrouped else []


def _of_transposed(args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Found]:
    x, weight, bias = (_argument(args, kwargs, i, name) for i, name in enumerate(("input", "weight", "bias")))
    return [(x, 1, weight, 0, bias)] if x.ndim == weight.ndim else []


def _of_layer_norm(args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Found]:
    x, _, weight, bias = (_argument(args, kwargs, i, n) for i, n in enumerate(("input", "", "weight", "bias")))
    return [(x, -1, weight, 0, bias)] if weight is not None and weight.ndim == 1 else []


def _of_batch_norm(args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Found]:
    names = ("input", "running_mean", "running_var", "weight", "bias")
    x, _, _, weight, bias = (_argument(args, kwargs, i, name) for i, name in enumerate(names))
    return [(x, 1, weight, 0, bias)] if weight is not None else []


def _of_group_norm(args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Found]:
    x, _, weight, bias = (_argument(args, kwargs, i, n) for i, n in enumerate(("input", "", "weight", "bias")))
    return [(x, 1, weight, 0, bias)] if weight is not None else []


def _of_recurrent(args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Found]:
    x, weights = args[0], next((item for item in args[1:] if isinstance(item, list | tuple) and len(item) > 2), ())
    matrices = [w for w in weights if isinstance(w, Tensor) and w.ndim == 2 and w.shape[1] == x.shape[-1]]
    # The first layer's come first: what reads its input, what reads its state, and where there are any, their biases.
    biases = [w for w in weights[2:3] if isinstance(w, Tensor) and w.ndim == 1]
    return [(x, -1, w, 1, biases[0] if biases else None) for w in matrices[:1]]


def _of_attention(args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Found]:
    weight, bias = args[5], args[6]
    x = args[0]
    return [(x, -1, weight, 1, bias)] if weight is not None and args[1] is x and args[2] is x else []


_RULES: dict[Any, Callable[[tuple[Any, ...], dict[str, Any]], list[Found]]] = {
    F.linear: _of_linear,
    torch.matmul: _of_matmul,
    torch.Tensor.matmul: _of_matmul,
    torch.Tensor.__matmul__: _of_matmul,
    torch.mm: _of_matmul,
    torch.Tensor.mm: _of_matmul,
    torch.addmm: _of_addmm,
    torch.conv1d: _of_convolution,
    torch.conv2d: _of_convolution,
    torch.conv3d: _of_convolution,
    torch.conv_transpose1d: _of_transposed,
    torch.conv_transpose2d: _of_transposed,
    torch.conv_transpose3d: _of_transposed,
    F.layer_norm: _of_layer_norm,
    F.rms_norm: _of_layer_norm,
    F.batch_norm: _of_batch_norm,
    F.group_norm: _of_group_norm,
    torch.lstm: _of_recurrent,
    torch.gru: _of_recurrent,
    torch.rnn_tanh: _of_recurrent,
    torch.rnn_relu: _of_recurrent,
    F.multi_head_attention_forward: _of_attention,
}


class Reads(TorchFunctionMode):
    """Hands every reading of the model's parameters to a function, in the order of the calls.

    Known are linear maps, convolutions, norms, matrix products, the first layer of recurrent networks, and
    self-attention, by whatever module or function they are run.
    """

    def __init__(self, model: nn.Module, see: Callable[[Reading], None]) -> None:
        super().__init__()
        self._see = see
        self._names = {_memory(p): (name, p) for name, p in model.named_parameters() if p.numel() and _has_memory(p)}

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        rule = _RULES.get(function)
        if rule is not None:
            for x, x_dim, weight, dim, bias in rule(args, kwargs):
                self._note(x, x_dim, weight, dim, bias)
        return function(*args, **kwargs)

    def _note(self, x: Tensor, x_dim: int, weight: Tensor, dim: int, bias: Tensor | None) -> None:
        known = self._names.get(_memory(weight)) if isinstance(weight, Tensor) and _has_memory(weight) else None
        if known is None or not isinstance(x, Tensor) or x.ndim == 0:
            return
        name, parameter = known
        if weight.numel() != parameter.numel() or x.shape[x_dim] != weight.shape[dim]:
            return
        # The weight may be a transposed view: the dimension of the parameter is the one with the same stride.
        same = [d for d in range(parameter.ndim) if (parameter.stride(d), parameter.shape[d]) == _step(weight, dim)]
        if not same:
            return
        of_bias = self._names.get(_memory(bias)) if isinstance(bias, Tensor) and _has_memory(bias) else None
        columns = x.detach().movedim(x_dim, 0).flatten(1)
        self._see(Reading(name, same[0], of_bias[0] if of_bias else None, columns))


def _step(tensor: Tensor, dim: int) -> tuple[int | torch.SymInt, int | torch.SymInt]:
    return tensor.stride(dim), tensor.shape[dim]


def _has_memory(tensor: Tensor) -> bool:
    return tensor.layout == torch.strided and tensor.device.type != "meta"


def _memory(tensor: Tensor) -> tuple[int, int]:
    return tensor.untyped_storage().data_ptr(), int(tensor.storage_offset())
