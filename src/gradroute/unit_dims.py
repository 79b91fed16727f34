"""Which entries of a module's own parameters belong to which unit: the rows that write it, the columns that read it."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn
from torch.nn.utils import parametrize

from . import _torch_private as private
from .errors import SiteError

End = Literal["output", "input"]

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_NORMS_OF_CHANNELS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.GroupNorm)


def kind_of(module: nn.Module) -> type[nn.Module]:
    """The class of a module; of one that FSDP2 has sharded, which gives it a class of its own, the class before."""
    kind = type(module)
    return kind.__bases__[1] if private.is_sharded_by_fsdp(module) else kind


def is_conv1d_of_transformers(module: nn.Module) -> bool:
    """Whether a module is the linear layer of GPT-2 in transformers, whose weight is [in, out]. Imports nothing."""
    kind = kind_of(module)
    return kind.__name__ == "Conv1D" and kind.__module__ == "transformers.pytorch_utils"


def unit_dims(module: nn.Module, on: End) -> dict[str, int] | None:
    """The module's own parameters that belong to units, and the dimension of each that counts them.

    ``on="output"``: what writes the units, weight rows and bias. ``on="input"``: what reads them, weight columns; a
    bias reads nothing. None where this is not known for a module of this kind, or of these settings: a parametrized
    weight, the input of a grouped convolution.

    Examples:
        >>> unit_dims(nn.Linear(3, 5), "output"), unit_dims(nn.Linear(3, 5), "input")
        ({'weight': 0, 'bias': 0}, {'weight': 1})
    """
    if parametrize.is_parametrized(module):
        return None
    dims = _known_dims(module, on)
    if dims is None:
        return None
    return {name: dim for name, dim in dims.items() if getattr(module, name, None) is not None}


def n_units(module: nn.Module, on: End) -> int:
    """How many units a module of a known kind has at this end.

    Raises:
        SiteError: The kind is not known.
    """
    dims = unit_dims(module, on)
    if not dims:
        raise SiteError(f"{type(module).__name__} has no known parameters for the units of its {on}.")
    name, dim = next(iter(dims.items()))
    return int(getattr(module, name).shape[dim])


def channel_dims(module: nn.Module) -> tuple[int, ...]:
    """The dimension of input and output that a module's weights count, by each number that is right for all shapes."""
    for kinds, dims in (
        ((nn.Conv1d,), (1, -2)),
        ((nn.Conv2d, nn.BatchNorm2d), (1, -3)),
        ((nn.Conv3d, nn.BatchNorm3d), (1, -4)),
        ((nn.BatchNorm1d, nn.GroupNorm), (1,)),
    ):
        if isinstance(module, kinds):
            return dims
    return (-1,)


def spread(values: Tensor, like: Tensor, dim: int) -> Tensor:
    """One value for each unit, [units], as a tensor that broadcasts against another whose `dim` counts units."""
    shape = [1] * like.ndim
    shape[dim] = -1
    return values.view(shape)


def _known_dims(module: nn.Module, on: End) -> dict[str, int] | None:  # noqa: PLR0911  # a table
    kind = kind_of(module)  # the very classes: a subclass may compute something else
    writes = on == "output"
    if kind in (nn.Linear, nn.modules.linear.NonDynamicallyQuantizableLinear):
        return {"weight": 0, "bias": 0} if writes else {"weight": 1}
    if is_conv1d_of_transformers(module):
        return {"weight": 1, "bias": 0} if writes else {"weight": 0}
    if isinstance(module, _CONVOLUTIONS) and kind in _CONVOLUTIONS:
        if writes:
            return {"weight": 0, "bias": 0}
        return {"weight": 1} if module.groups == 1 else None
    if kind is nn.Embedding:
        return {"weight": 1} if writes else None
    of_one_dim = isinstance(module, nn.LayerNorm | nn.RMSNorm) and len(module.normalized_shape) == 1
    if (kind in (nn.LayerNorm, nn.RMSNorm) and of_one_dim) or kind in _NORMS_OF_CHANNELS:
        return {"weight": 0, "bias": 0} if writes else {"weight": 0}
    return None
