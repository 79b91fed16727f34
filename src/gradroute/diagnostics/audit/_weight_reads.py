"""`Reads`: which parameters read which columns of what, seen while a model runs."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from ... import _torch_private as private


@dataclass(frozen=True)
class Reading:
    """One use of a weight: each of its columns meets one column of a tensor.

    Attributes:
        weight: The name of the parameter.
        dim: The dimension of the parameter that counts its columns.
        bias: The name of the parameter that is added to what it reads; None where there is none.
        columns: The columns of the tensor, [n_columns, anything].
        multiplies: Whether the two are multiplied, so that the column's gradient is a multiple of what it reads.
        entry_by_entry: Whether they meet as a sum or a scale of entries does.
    """

    weight: str
    dim: int
    bias: str | None
    columns: Tensor
    multiplies: bool = True
    entry_by_entry: bool = False

    @property
    def use(self) -> Hashable:
        """Of which weight it is, and how it is used: the same in each run of a model."""
        return self.weight, self.dim, self.bias, self.multiplies, self.entry_by_entry


class _Use(NamedTuple):
    """A tensor and its dimension of columns, a weight and the dimension that reads them, a bias."""

    x: Any
    x_dim: int
    weight: Any
    dim: int
    bias: Any = None
    multiplies: bool = True
    entry_by_entry: bool = False


@dataclass(frozen=True)
class _Rule:
    """Where a function takes its tensor, weight and bias, by position and by name; and their dimensions of columns."""

    x: tuple[int, str]
    x_dim: int
    weight: tuple[int, str]
    dim: int
    bias: tuple[int, str] | None = None

    def __call__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[_Use]:
        x, weight, bias = (_argument(args, kwargs, where) for where in (self.x, self.weight, self.bias))
        yield _Use(x, self.x_dim, weight, self.dim, bias)


def _argument(args: tuple[Any, ...], kwargs: dict[str, Any], where: tuple[int, str] | None) -> Any:
    if where is None:
        return None
    position, name = where
    return args[position] if position < len(args) else kwargs.get(name)


def _matmul(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[_Use]:
    x, weight = (_argument(args, kwargs, where) for where in ((0, "input"), (1, "other")))
    if weight.ndim == 2:
        yield _Use(x, -1, weight, 0)


def _entry_by_entry(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[_Use]:
    """Each argument as a weight that meets each other one, along every dimension in which they have the same size."""
    tensors = [item for item in (*args, *kwargs.values()) if isinstance(item, Tensor)]
    multiplies = _name(function) in _PRODUCTS
    for weight, x in itertools.permutations(tensors, 2):
        for dim in range(-min(weight.ndim, x.ndim), 0):
            if weight.shape[dim] == x.shape[dim] > 1:
                yield _Use(x, dim, weight, dim, multiplies=multiplies, entry_by_entry=True)


def _by_features(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[_Use]:
    """A distance or similarity of rows, in which the last dimensions meet."""
    for x, weight in itertools.permutations(
        [item for item in (*args, *kwargs.values()) if isinstance(item, Tensor)], 2
    ):
        if x.ndim and weight.ndim and x.shape[-1] == weight.shape[-1]:
            yield _Use(x, -1, weight, -1, multiplies=False)


def _recurrent(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[_Use]:
    """The first layer, in both directions: the weights are a list, before how many biases, layers and directions."""
    where = next(position for position, item in enumerate(args) if isinstance(item, bool)) - 1
    weights, has_biases, n_layers, _, _, bidirectional = args[where : where + 6]
    stride = len(weights) // (n_layers * (1 + bidirectional))
    for first in range(0, stride * (1 + bidirectional), stride):
        yield _Use(args[0], -1, weights[first], 1, weights[first + 2] if has_biases else None)


def _self_attention(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[_Use]:
    query, key, value = args[:3]
    if query is key and query is value:
        yield _Use(query, -1, args[5], 1, args[6])


_CONVOLUTION = _Rule((0, "input"), 1, (1, "weight"), 1, (2, "bias"))
_TRANSPOSED = dataclasses.replace(_CONVOLUTION, dim=0)
_OF_LAST = _Rule((0, "input"), -1, (2, "weight"), -1, (3, "bias"))
_CELL = _Rule((0, "input"), -1, (2, "w_ih"), 1, (4, "b_ih"))
_RULES: dict[Any, Callable[[tuple[Any, ...], dict[str, Any]], Iterator[_Use]]] = {
    F.linear: _Rule((0, "input"), -1, (1, "weight"), 1, (2, "bias")),
    torch.addmm: _Rule((1, "mat1"), -1, (2, "mat2"), 0, (0, "input")),
    **dict.fromkeys(
        (torch.matmul, torch.mm, torch.Tensor.matmul, torch.Tensor.mm, torch.Tensor.__matmul__),
        _matmul,
    ),
    torch.prelu: _Rule((0, "input"), 1, (1, "weight"), 0),
    **dict.fromkeys((torch.cdist, F.pairwise_distance, F.cosine_similarity), _by_features),
    **dict.fromkeys((torch.conv1d, torch.conv2d, torch.conv3d), _CONVOLUTION),
    **dict.fromkeys((torch.conv_transpose1d, torch.conv_transpose2d, torch.conv_transpose3d), _TRANSPOSED),
    F.layer_norm: _OF_LAST,
    F.rms_norm: _OF_LAST,
    F.group_norm: dataclasses.replace(_OF_LAST, x_dim=1),
    F.batch_norm: _Rule((0, "input"), 1, (3, "weight"), 0, (4, "bias")),
    **dict.fromkeys((torch.lstm, torch.gru, torch.rnn_tanh, torch.rnn_relu), _recurrent),
    **dict.fromkeys((torch.lstm_cell, torch.gru_cell, torch.rnn_tanh_cell, torch.rnn_relu_cell), _CELL),
    F.multi_head_attention_forward: _self_attention,
}


# Functions by their names, without the underscores of methods that write in place and of operators.
_PRODUCTS = {"mul", "multiply", "imul", "rmul"}
_ENTRY_BY_ENTRY = {
    *_PRODUCTS,
    *("add", "iadd", "radd", "sub", "subtract", "isub", "rsub", "div", "divide", "true_divide", "truediv", "rtruediv"),
    *("itruediv", "pow", "rpow", "float_power", "maximum", "minimum", "fmax", "fmin", "max", "min", "where", "lerp"),
    *("addcmul", "addcdiv", "atan2", "hypot", "xlogy", "logaddexp", "logaddexp2", "fmod", "remainder", "copysign"),
    *("mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss", "gaussian_nll_loss", "kl_div"),
    *("gt", "ge", "lt", "le", "dist"),
}
# Rows of a weight: what comes out has its columns.
_LOOKUPS = {"embedding", "getitem", "index_select", "take_along_dim", "gather"}
# What is added to a tensor, or put next to it, is known to read nothing of it.
_READ_NOTHING = {"add", "iadd", "radd", "sub", "subtract", "isub", "rsub", "cat", "concat", "stack"}


def _name(function: Any) -> str:
    return str(getattr(function, "__name__", "")).strip("_")


class Reads(TorchFunctionMode):
    """Hands every reading of the model's parameters to a function, in the order of the calls.

    Known are linear maps and matrix products, ungrouped convolutions, norms, the first layer of recurrent networks,
    self-attention, and all that meets entry by entry (sums, scales, distances), by whatever module or function they are
    run. Rows that are looked up in a weight, as in an embedding or a codebook, are known as its own.

    Attributes:
        unknown: The names of parameters that meet a tensor in any other operation: what they read is not known.
    """

    def __init__(self, model: nn.Module, see: Callable[[Reading], None]) -> None:
        super().__init__()
        self._see = see
        self._names = {_memory(p): (name, p) for name, p in model.named_parameters() if p.numel() and _has_memory(p)}
        self._rows: dict[tuple[int, int], tuple[str, int, Tensor]] = {}
        self.unknown: set[str] = set()

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(function, "__name__", "") == "__get__":  # an attribute of one tensor: most of all calls
            return function(*args, **kwargs)
        name = _name(function)
        # What is looked at here is not part of the run: without this each look would go through all other modes.
        with private.unseen_by_modes():
            uses: Iterable[_Use] = ()
            if function in _RULES:
                uses = _RULES[function](args, kwargs)
            elif name in _ENTRY_BY_ENTRY:
                uses = _entry_by_entry(function, args, kwargs)
            noted = [self._note(use) for use in uses]
            if not any(noted) and name not in _READ_NOTHING:
                self._note_unknown([*args, *kwargs.values()])
        result = function(*args, **kwargs)
        if name in _LOOKUPS:
            with private.unseen_by_modes():
                self._note_rows([*args, *kwargs.values()], result)
        return result

    def _note(self, use: _Use) -> bool:
        """Hand on a reading; whether it is one, of a parameter as a whole or of rows of one."""
        if not isinstance(use.x, Tensor) or not isinstance(use.weight, Tensor) or use.x.ndim <= max(use.x_dim, 0):
            return False
        if use.x.shape[use.x_dim] != use.weight.shape[use.dim]:
            return False
        if use.entry_by_entry and self._parameter(use.x) is not None:
            return False
        found = self._dim_of_parameter(use)
        if found is None:
            return False
        name, dim = found
        bias = self._parameter(use.bias)
        columns = use.x.detach().movedim(use.x_dim, 0).flatten(1)
        self._see(Reading(name, dim, bias[0] if bias else None, columns, use.multiplies, use.entry_by_entry))
        return True

    def _dim_of_parameter(self, use: _Use) -> tuple[str, int] | None:
        """The parameter that a use is of, and its dimension of columns."""
        rows = self._rows.get(_memory(use.weight)) if _has_memory(use.weight) else None
        if rows is not None and use.dim in (-1, use.weight.ndim - 1):
            return rows[:2]
        known = self._parameter(use.weight)
        if known is None or use.weight.numel() != known[1].numel():
            return None
        name, parameter = known
        # The weight may be a transposed view: the dimension of the parameter is the one with the same stride.
        step = use.weight.stride(use.dim), use.weight.shape[use.dim]
        same = [dim for dim in range(parameter.ndim) if (parameter.stride(dim), parameter.shape[dim]) == step]
        return (name, same[0]) if same else None

    def _note_rows(self, operands: list[Any], result: Any) -> None:
        known = next((found for found in map(self._parameter, operands) if found is not None), None)
        if known is None or not isinstance(result, Tensor) or not _has_memory(result) or known[1].ndim < 2:
            return
        if result.ndim and result.shape[-1] == known[1].shape[-1] and _memory(result) not in self._names:
            self._rows[_memory(result)] = (
                known[0],
                known[1].ndim - 1,
                result,
            )  # held, so that nothing else comes to lie there

    def _note_unknown(self, operands: list[Any]) -> None:
        tensors = [
            tensor
            for item in operands
            for tensor in (item if isinstance(item, tuple | list) else (item,))
            if isinstance(tensor, Tensor) and tensor.is_floating_point() and tensor.ndim > 0
        ]
        names = [known[0] for known in map(self._parameter, tensors) if known is not None]
        if len(names) < len(tensors):
            self.unknown.update(names)

    def _parameter(self, tensor: Any) -> tuple[str, nn.Parameter] | None:
        return self._names.get(_memory(tensor)) if isinstance(tensor, Tensor) and _has_memory(tensor) else None


def _has_memory(tensor: Tensor) -> bool:
    return tensor.layout == torch.strided and tensor.device.type != "meta"


def _memory(tensor: Tensor) -> tuple[int, int]:
    return tensor.untyped_storage().data_ptr(), int(tensor.storage_offset())
