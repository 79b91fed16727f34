"""Parameters with more or fewer entries, put where the old ones were: in modules, in their sizes, in an optimizer."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from .. import units
from ..errors import SiteError, UsageError

Change = Callable[[Tensor, bool], Tensor]
"""Makes the new tensor of an old one; told whether that is the parameter itself, or something kept for each entry."""

_CONVOLUTION: Final = {("weight", 0): "out_channels", ("weight", 1): "in_channels"}
# Which attribute of a layer repeats the size of which dimension of which of its tensors.
_SIZES: Final[dict[type[nn.Module], dict[tuple[str, int], str]]] = {
    nn.Linear: {("weight", 0): "out_features", ("weight", 1): "in_features"},
    nn.Conv1d: _CONVOLUTION,
    nn.Conv2d: _CONVOLUTION,
    nn.Conv3d: _CONVOLUTION,
    nn.Embedding: {("weight", 1): "embedding_dim"},
    nn.modules.batchnorm._BatchNorm: {("weight", 0): "num_features", ("running_mean", 0): "num_features"},
}
_SIZES_OF_CONV1D: Final = {("weight", 0): "nx", ("weight", 1): "nf"}


def kept(mask: Tensor, dim: int) -> Change:
    """A change that keeps the entries along `dim` where a mask, bool [size], is False."""

    def change(tensor: Tensor, _: bool) -> Tensor:
        return tensor.index_select(dim, (~mask).nonzero().flatten().to(tensor.device))

    return change


def extended(new: Tensor, dim: int) -> Change:
    """A change that appends entries along `dim`; zeros to what is kept for each entry of a parameter."""

    def change(tensor: Tensor, is_parameter: bool) -> Tensor:
        added = new.to(tensor.device, tensor.dtype)
        return torch.cat([tensor, added if is_parameter else torch.zeros_like(added)], dim)

    return change


def replace(modules: Iterable[nn.Module], old: Tensor, change: Change, dim: int, optimizer: Optimizer | None) -> Tensor:
    """Put a changed tensor wherever these modules hold the old one, and wherever the optimizer does.

    Args:
        modules: All modules that may hold it.
        old: A parameter or a buffer.
        change: Makes the new tensor, of the same number of dimensions.
        dim: The dimension whose size changes.
        optimizer: Its groups then hold the new parameter, and its state the changed state.

    Returns:
        The new tensor, in memory of its own.

    Raises:
        UsageError: The optimizer keeps something for the parameter that has another shape than it.
    """
    with torch.no_grad():
        new: Tensor = change(old.detach(), True).clone()
        if isinstance(old, nn.Parameter):
            new = nn.Parameter(new, requires_grad=old.requires_grad)
            if old.grad is not None:
                new.grad = change(old.grad, False).clone()
            if optimizer is not None:
                _carry(optimizer, old, new, change)
    for module in modules:
        for held in (module._parameters, module._buffers):
            for name, tensor in held.items():
                if tensor is old:
                    held[name] = new  # type: ignore[assignment]
                    _note_size(module, name, dim, new.shape[dim])
    return new


def check_state(optimizer: Optimizer, parameter: Tensor) -> None:
    """Check that an optimizer's state for a parameter can be resized with it.

    Raises:
        UsageError: It keeps something of another shape, such as the factors of Adafactor or the history of LBFGS.
    """
    for name, value in optimizer.state.get(parameter, {}).items():
        per_entry = isinstance(value, Tensor) and value.shape == parameter.shape
        if not per_entry and (
            isinstance(value, list | tuple | dict) or (isinstance(value, Tensor) and value.numel() > 1)
        ):
            raise UsageError(
                f"{type(optimizer).__name__} keeps {name!r} in another shape than that of its parameter "
                f"{tuple(parameter.shape)}, so that it cannot be resized with it: leave optimizer out, and make "
                "a new one."
            )


def drawn_like(tensor: Tensor, shape: Iterable[int], generator: torch.Generator | None) -> Tensor:
    """Fresh entries at the scale of others: normal, with their mean and standard deviation."""
    rest = tensor.detach().float()
    mean = float(rest.mean()) if rest.numel() else 0.0
    std = float(rest.std()) if rest.numel() > 1 else 0.0
    device = generator.device if generator is not None else tensor.device
    drawn = torch.empty(tuple(shape), device=device).normal_(mean, std, generator=generator)
    return drawn.to(tensor.device, tensor.dtype)


def _carry(optimizer: Optimizer, old: Tensor, new: Tensor, change: Change) -> None:
    check_state(optimizer, old)
    for group in optimizer.param_groups:
        group["params"] = [new if parameter is old else parameter for parameter in group["params"]]
    if old in optimizer.state:
        state = optimizer.state.pop(old)
        optimizer.state[new] = {
            name: change(value, False).clone() if isinstance(value, Tensor) and value.shape == old.shape else value
            for name, value in state.items()
        }


def _note_size(module: nn.Module, name: str, dim: int, size: int) -> None:
    if units.is_conv1d_of_transformers(module):
        sizes = _SIZES_OF_CONV1D
    else:
        sizes = next((known for kind, known in _SIZES.items() if isinstance(module, kind)), {})
    attribute = sizes.get((name, dim))
    if attribute is not None:
        setattr(module, attribute, size)


def entries(module: nn.Module, on: units.End) -> dict[str, int]:
    """As `units.unit_dims`, for a layer whose size is to change.

    Raises:
        SiteError: It is not known which of its entries belong to which unit.
    """
    dims = units.unit_dims(module, on)
    if dims is None:
        raise SiteError(
            f"of a {type(module).__name__} it is not known which entries belong to the units of its {on}: it must be "
            "an nn.Linear, nn.Conv1d to nn.Conv3d (ungrouped on its input), or Conv1D of transformers, and not "
            "parametrized."
        )
    return dims
