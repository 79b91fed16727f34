"""Layers whose units have entries of their own, and where these are.

In them no unit's entries take part in another unit's output, so that a mask that closes a unit leaves them a gradient of exactly 0.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from torch import nn


@dataclasses.dataclass(frozen=True)
class Layer:
    """Where a layer's units are: the dimension of its output, and that of each of its own parameters."""

    output: int
    parameters: dict[str, int]


_FIRST = Layer(1, {"weight": 0, "bias": 0})
_LAST = Layer(-1, {"weight": 0, "bias": 0})
_TRANSPOSED = Layer(1, {"weight": 1, "bias": 0})

#: Layers of torch, where the units are, and what must be true of one besides.
_KNOWN: list[tuple[tuple[type[nn.Module], ...], Layer, Callable[[nn.Module], bool]]] = [
    ((nn.Conv1d, nn.Conv2d, nn.Conv3d), _FIRST, lambda module: True),
    ((nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.GroupNorm), _FIRST, lambda module: True),
    ((nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d), _FIRST, lambda module: True),
    ((nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d), _TRANSPOSED, lambda module: module.groups == 1),
    ((nn.Linear,), _LAST, lambda module: True),
    ((nn.LayerNorm, nn.RMSNorm), _LAST, lambda module: len(module.normalized_shape) == 1),
    ((nn.Embedding,), Layer(-1, {"weight": 1}), lambda module: True),
]


def layer(module: nn.Module) -> Layer | None:
    """Where the units of this module are, if it is a layer that is known."""
    for kinds, where, holds in _KNOWN:
        # A subclass too, where it computes the same.
        if any(isinstance(module, kind) and type(module).forward is kind.forward for kind in kinds) and holds(module):
            return where
    name, own = type(module).__name__, dict(module.named_parameters())
    if name == "LayerNorm2d":  # torchvision's and timm's: channels first
        return _FIRST
    if name == "Conv1D" and set(own) == {"weight", "bias"}:  # transformers': a Linear with its weight transposed
        return Layer(-1, {"weight": 1, "bias": 0})
    if name.endswith("RMSNorm") and set(own) == {"weight"} and own["weight"].ndim == 1:
        return _LAST
    return None


def unit_dimension(module: nn.Module, dimensions: int) -> int:
    """The dimension along which a module's output of so many dimensions is routed.

    A layer that is known says it. Of other modules, the last one; but in images and videos the channels come first, unless
    the module is made of layers that keep channels last.
    """
    known = layer(module)
    if known is not None:
        return known.output
    if dimensions < 4:
        return -1
    inner = {one.output for one in map(layer, module.modules()) if one is not None}
    return -1 if inner == {-1} else 1
