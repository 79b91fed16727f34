"""Tensors with more or fewer entries in a model, in the sizes that its layers repeat, and in an optimizer's state."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from .. import _torch_private as private
from .. import unit_dims as units
from ..errors import SiteError, UsageError
from ..optim._state import refuse_mixing, state_of_units, untouched_state

Change = Callable[[Tensor, str], Tensor]
"""Makes the new tensor of an old one: of a parameter or buffer itself (""), its gradient ("grad"), or the state that an
optimizer keeps of it under this name."""


def kept(mask: Tensor, dim: int) -> Change:
    """A change that keeps the entries along `dim` where a mask, bool [size], is False."""

    def change(tensor: Tensor, _: str) -> Tensor:
        return tensor.index_select(dim, (~mask).nonzero().flatten().to(tensor.device))

    return change


def extended(new: Tensor, dim: int, optimizer: Optimizer | None, old: Tensor) -> Change:
    """A change that appends entries along `dim` to an old tensor, with the state that an optimizer makes for such.

    Raises:
        UsageError: It has state, and it cannot be told what it would be for new entries.
    """
    known = {"": new}
    if optimizer is not None and optimizer.state.get(old):
        known |= untouched_state(optimizer, old, new)

    def change(tensor: Tensor, name: str) -> Tensor:
        added = known[name] if name in known else torch.zeros_like(new)
        return torch.cat([tensor, added.to(tensor.device, tensor.dtype)], dim)

    return change


@torch.no_grad()
def resize(tensor: Tensor, change: Change, dim: int, modules: Iterable[nn.Module], optimizer: Optimizer | None) -> None:
    """Change the size of a parameter or buffer in place, with its gradient and its state.

    It stays the same object, so that whoever else holds it, such as another layer or an optimizer that nobody named
    here, has the new size too, and raises where that does not fit. With a new object it would go on, in silence, with
    one that the model no longer uses.

    Args:
        tensor: The parameter or buffer.
        change: Makes the new tensor, of the same number of dimensions, in memory of its own.
        dim: The dimension whose size changes.
        modules: Those of them that repeat its size in an attribute get the new one.
        optimizer: Its state for the parameter changes with it.
    """
    if optimizer is not None:
        for name, value in state_of_units(optimizer, tensor).items():
            optimizer.state[tensor][name] = change(value, name)
    grad, new = tensor.grad, change(tensor.detach(), "")
    tensor.grad = None
    # Another dtype first: what an older graph knows of the shape is only forgotten when the type changes.
    tensor.data = new.new_empty(0, dtype=torch.float32 if new.dtype == torch.float64 else torch.float64)
    tensor.data = new
    if grad is not None:
        tensor.grad = change(grad, "grad")
    for module in modules:
        for name, held in private.own_tensors(module).items():
            if held is tensor:
                _note_size(module, name, dim, new.shape[dim])


def check_optimizer(optimizer: Optimizer, parameters: Iterable[nn.Parameter]) -> None:
    """Check that an optimizer's state for some parameters can be resized with them.

    Raises:
        UsageError: It keeps something of another shape, such as the factors of Adafactor or the history of LBFGS.
    """
    for parameter in parameters:
        try:
            refuse_mixing(optimizer, {parameter})
            state_of_units(optimizer, parameter)
        except UsageError:
            raise UsageError(
                f"{type(optimizer).__name__} keeps state in another shape than that of its parameters, so that it "
                "cannot be resized with them: leave optimizer out, and make a new one."
            ) from None


def drawn_like(tensor: Tensor, shape: Iterable[int], generator: torch.Generator | None) -> Tensor:
    """Fresh entries at the scale of others: normal, with their mean and standard deviation."""
    rest = tensor.detach().float()
    mean = float(rest.mean()) if rest.numel() else 0.0
    std = float(rest.std()) if rest.numel() > 1 else 0.0
    device = generator.device if generator is not None else tensor.device
    drawn = torch.empty(tuple(shape), device=device).normal_(mean, std, generator=generator)
    return drawn.to(tensor.device, tensor.dtype)


def entries(module: nn.Module, on: units.End) -> dict[str, int]:
    """As `units.unit_dims`, for a layer whose weights are to be written.

    Raises:
        SiteError: It is not known which of its entries belong to which unit.
    """
    dims = units.unit_dims(module, on)
    if dims is None:
        raise SiteError(
            f"of a {type(module).__name__} it is not known which entries belong to the units of its {on}: it must be "
            "an nn.Linear, nn.Conv1d to nn.Conv3d (ungrouped on its input), nn.ConvTranspose1d to nn.ConvTranspose3d "
            "(ungrouped on its output), or Conv1D of transformers, and not parametrized."
        )
    for name in dims:
        check_writable(module, name)
    return dims


def check_writable(module: nn.Module, name: str) -> None:
    """Refuse a weight that is no plain tensor of the module's own.

    Raises:
        SiteError: It is computed of others, as old forms of weight norm and pruning do, or it is sharded or quantized.
    """
    held = private.own_tensors(module).get(name)
    if held is None:
        raise SiteError(
            f"the {name} of this {type(module).__name__} is computed before each forward pass, as pruning and the old "
            "weight_norm do: make it a parameter again first, such as by torch.nn.utils.prune.remove."
        )
    if type(held) not in (Tensor, nn.Parameter, nn.Buffer):
        raise SiteError(
            f"the {name} of this {type(module).__name__} is a {type(held).__name__}: expected a plain tensor, neither "
            "sharded nor quantized. Gather the model first."
        )


def _note_size(module: nn.Module, name: str, dim: int, size: int) -> None:
    attribute = units.size_attribute(module, name, dim)
    if attribute is not None:
        setattr(module, attribute, size)
