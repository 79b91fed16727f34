"""`expand_` and `contract_`: more units, or fewer, between two layers of a model."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Final, TypeAlias

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from .. import units
from ..errors import SiteError, preview
from . import resize

Layers: TypeAlias = "nn.Module | Sequence[nn.Module]"

_NORMS: Final = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
# What a new unit meets in a batch norm: such values that it passes unchanged, but for eps.
_FRESH_NORM: Final = {"weight": 1.0, "bias": 0.0, "running_mean": 0.0, "running_var": 1.0}
_MIXING: Final = (
    *(nn.LayerNorm, nn.RMSNorm, nn.GroupNorm, nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d),
    *(nn.Softmax, nn.Softmax2d, nn.LogSoftmax),
)
_NO_LAYERS: Final = (*_MIXING, *_NORMS, nn.Embedding)


def expand_(
    producer: Layers,
    consumer: Layers,
    extra: int,
    *,
    between: Sequence[nn.Module] = (),
    init: Callable[[Tensor], object] | None = None,
    optimizer: Optimizer | None = None,
    generator: torch.Generator | None = None,
) -> slice:
    """Put more units between two layers of a model, in place, without changing what the model computes.

    The producer gets `extra` rows, drawn at the scale of those it has; the consumer gets `extra` columns of zeros, so
    that nothing reads the new units yet, whatever activation function lies between. The first step of training teaches
    these columns, and the next the rows behind them.

    Args:
        producer: The layer whose output the units are: nn.Linear, nn.Conv1d to nn.Conv3d, or Conv1D of transformers. Or
            several of the same width, which all get the units, such as the gate and up projections of a gated MLP.
        consumer: The layer that reads them, of the same kinds; or several that all read them. One that reads k features
            for each unit, as behind nn.Flatten, gets k columns for each.
        extra: How many units.
        between: The modules between the two in the model. Batch norms among them grow too; a norm that mixes the units,
            as nn.LayerNorm does, is refused.
        init: Fills the new rows of a producer's weight, in place, instead of the draw; biases are then 0.
        optimizer: Its groups then hold the new parameters, and its state has zeros for the new entries.
        generator: Where the rows are drawn from.

    Returns:
        The new units, as an index for a `RoutingSpec` of the new width: the last `extra`.

    Raises:
        SiteError: It cannot be done without changing the function, or a layer is not of these kinds.
        UsageError: The optimizer's state cannot be carried along.

    Note:
        Sizes that the model keeps elsewhere, such as in the config of a transformers model, are not changed. What reads
        the units beside the consumer raises in the next forward pass, since the widths do not fit any more.

    Examples:
        >>> model = nn.Sequential(nn.Linear(3, 2), nn.GELU(), nn.Linear(2, 1))
        >>> x = torch.randn(5, 3)
        >>> before = model(x)
        >>> expand_(model[0], model[2], 4, between=[model[1]])
        slice(2, 6, None)
        >>> model[0], torch.allclose(model(x), before)
        (Linear(in_features=3, out_features=6, bias=True), True)

    References:
        The first step of expand, route, ablate: Cloud et al., 2024 (arXiv:2410.04332).
    """
    if not isinstance(extra, int) or isinstance(extra, bool) or extra < 1:
        raise SiteError(f"extra must be an integer of at least 1; got {extra!r}.")
    producers, consumers = _layers(producer), _layers(consumer)
    width = _check_chain(producers, consumers, between, optimizer)
    modules = [*producers, *consumers, *between]
    for layer in producers:
        for name, dim in resize.entries(layer, "output").items():
            old = getattr(layer, name)
            shape = [extra if d == dim else size for d, size in enumerate(old.shape)]
            new = torch.zeros(shape, device=old.device, dtype=old.dtype)
            if init is None:
                new = resize.drawn_like(old, shape, generator)
            elif name == "weight":
                with torch.no_grad():
                    init(new)
            resize.replace(modules, old, resize.extended(new, dim), dim, optimizer)
    for norm in between:
        for name, value in _FRESH_NORM.items() if isinstance(norm, _NORMS) else ():
            old = getattr(norm, name)
            if old is not None:
                resize.replace(modules, old, resize.extended(old.new_full((extra,), value), 0), 0, optimizer)
        if isinstance(norm, _NORMS):
            norm.num_features = width + extra
    for layer in consumers:
        for name, dim in resize.entries(layer, "input").items():
            old = getattr(layer, name)
            shape = [extra * (size // width) if d == dim else size for d, size in enumerate(old.shape)]
            resize.replace(modules, old, resize.extended(old.detach().new_zeros(shape), dim), dim, optimizer)
    return slice(width, width + extra)


def contract_(
    producer: Layers,
    consumer: Layers,
    which: slice | Sequence[int],
    *,
    between: Sequence[nn.Module] = (),
    optimizer: Optimizer | None = None,
) -> None:
    """Take units out from between two layers of a model, in place: `expand_` backwards.

    The model computes afterwards what it computed before with zeros for what the consumer read from these units.

    Args:
        producer: As for `expand_`.
        consumer: As for `expand_`.
        which: The units to take out: indices, or a slice such as `expand_` returns.
        between: As for `expand_`.
        optimizer: Its groups then hold the new parameters, and its state what belongs to the units that stay.

    Raises:
        SiteError: As for `expand_`; or all units would go, or one does not exist.
        UsageError: The optimizer's state cannot be carried along.

    Examples:
        >>> model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1))
        >>> contract_(model[0], model[2], [1, 3], between=[model[1]])
        >>> model
        Sequential(
          (0): Linear(in_features=3, out_features=2, bias=True)
          (1): ReLU()
          (2): Linear(in_features=2, out_features=1, bias=True)
        )
    """
    producers, consumers = _layers(producer), _layers(consumer)
    width = _check_chain(producers, consumers, between, optimizer)
    indices = list(range(width))[which] if isinstance(which, slice) else list(which)
    wrong = [index for index in indices if not isinstance(index, int) or not 0 <= index < width]
    if wrong:
        raise SiteError(f"there is no unit {preview(wrong)}: they are numbered 0 to {width - 1}.")
    gone = torch.zeros(width, dtype=torch.bool)
    gone[indices] = True
    if bool(gone.all()):
        raise SiteError(f"all {width} units would go: leave at least one, or take the layers out of the model.")
    modules = [*producers, *consumers, *between]
    for layer in producers:
        for name, dim in resize.entries(layer, "output").items():
            resize.replace(modules, getattr(layer, name), resize.kept(gone, dim), dim, optimizer)
    for norm in between:
        for name in _FRESH_NORM if isinstance(norm, _NORMS) else ():
            if getattr(norm, name) is not None:
                resize.replace(modules, getattr(norm, name), resize.kept(gone, 0), 0, optimizer)
        if isinstance(norm, _NORMS):
            norm.num_features = width - int(gone.sum())
    for layer in consumers:
        for name, dim in resize.entries(layer, "input").items():
            old = getattr(layer, name)
            columns = gone.repeat_interleave(old.shape[dim] // width)
            resize.replace(modules, old, resize.kept(columns, dim), dim, optimizer)


def _layers(layers: Layers) -> list[nn.Module]:
    found = [layers] if isinstance(layers, nn.Module) else list(layers)
    if not found or not all(isinstance(layer, nn.Module) for layer in found):
        raise SiteError(
            f"expected a module or several; got {preview(type(layer).__name__ for layer in found) or 'none'}."
        )
    return found


def _check_chain(
    producers: list[nn.Module], consumers: list[nn.Module], between: Sequence[nn.Module], optimizer: Optimizer | None
) -> int:
    """Check that units can be put between these layers, or taken out from there; return how many there are.

    Raises:
        SiteError: They cannot.
        UsageError: The optimizer's state cannot be carried along.
    """
    ends = [(layer, "output") for layer in producers] + [(layer, "input") for layer in consumers]
    for layer, end in ends:
        if isinstance(layer, _NO_LAYERS):
            raise SiteError(
                f"a {type(layer).__name__} is no layer between whose {end} and another layer units can be put."
            )
    widths = {units.n_units(layer, "output") for layer in producers if resize.entries(layer, "output")}
    if len(widths) != 1:
        raise SiteError(f"the producers make different numbers of units: {preview(sorted(widths))}.")
    width = widths.pop()
    if any(isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d) and layer.groups != 1 for layer in producers):
        raise SiteError("the producer is a grouped convolution, whose groups must stay of one size.")
    for layer in consumers:
        resize.entries(layer, "input")
        read = units.n_units(layer, "input")
        flat = isinstance(layer, nn.Linear)
        if read % width or (read != width and not flat):
            raise SiteError(
                f"the producer makes {width} units, but a consumer reads {read}: it does not read them, or not alone."
            )
    for module in between:
        _check_between(module, width)
    if optimizer is not None:
        for module in [*producers, *consumers, *between]:
            for parameter in module.parameters():
                resize.check_state(optimizer, parameter)
    return width


def _check_between(module: nn.Module, width: int) -> None:
    """Refuse a module between two layers that would not treat each unit by itself."""
    if isinstance(module, _MIXING):
        raise SiteError(
            f"a {type(module).__name__} lies between, which mixes the units: each is scaled by statistics of all, "
            "which other units change, whatever reads them. Choose layers with no such norm between them."
        )
    if isinstance(module, _NORMS) and module.num_features != width:
        raise SiteError(f"a norm between is over {module.num_features} units, and the producer makes {width}.")
    own = sum(math.prod(parameter.shape) for parameter in module.parameters())
    if own and not isinstance(module, _NORMS):
        raise SiteError(
            f"a {type(module).__name__} with parameters lies between, of which it is not known what a unit more or "
            "less means: only batch norms and modules without parameters may."
        )
