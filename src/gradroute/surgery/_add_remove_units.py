"""`add_units_` and `remove_units_`: more units, or fewer, between two layers of a model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, TypeAlias

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from .. import unit_dims as units
from ..errors import SiteError, preview
from . import _resize as resize

Layers: TypeAlias = "nn.Module | Sequence[nn.Module]"
"""One layer, or several."""

# What a new unit meets in a batch norm: such values that it passes unchanged, but for eps.
_FRESH_NORM: Final = {"weight": 1.0, "bias": 0.0, "running_mean": 0.0, "running_var": 1.0}
_CONVOLUTIONS: Final = (*units.CONVOLUTIONS, *units.TRANSPOSED_CONVOLUTIONS)
_NO_LAYERS: Final = (*units.MIXING, *units.BATCH_NORMS, nn.Embedding)

# A tensor, how it changes, and the dimension whose size does.
_Edit: TypeAlias = "tuple[Tensor, resize.Change, int]"


def add_units_(
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
        producer: The layer whose output the units are: nn.Linear, nn.Conv1d to nn.Conv3d, nn.ConvTranspose1d to
            nn.ConvTranspose3d, or Conv1D of transformers. Or several of the same width, which all get the units, such
            as the gate and up projections of a gated MLP.
        consumer: The layer that reads them, of the same kinds; or several that all read them. A linear layer behind a
            convolution and nn.Flatten reads k features of each unit, and gets k columns for each.
        extra: How many units.
        between: The modules between the two in the model. Batch norms among them grow too; what mixes the units, as
            nn.LayerNorm or nn.Softmax does, is refused.
        init: Fills the new rows of a producer's weight, in place, instead of the draw; biases are then 0.
        optimizer: Its state for these parameters gets, for the new entries, what it makes of zero gradients.
        generator: Where the rows are drawn from.

    Returns:
        The new units, as an index for a `RoutingSpec` of the new width: the last `extra`.

    Raises:
        SiteError: It cannot be done without changing the function, or a layer is not of these kinds.
        UsageError: The optimizer's state cannot be carried along.

    Note:
        Only the layers are seen here, not the model's code: what lies between without being named in `between`, such as
        a call of torch.softmax, must treat each unit by itself. What reads the units beside the consumer raises in the
        next forward pass, since the widths do not fit any more. The parameters stay the same objects, so an optimizer
        that has them goes on with them; if it has state, pass it as `optimizer`, or its next step raises. Sizes that
        the model keeps elsewhere, as in the config of a transformers model, are not changed.
        Make the router afterwards, and whatever distributes the model, such as DDP or fully_shard.

    Examples:
        >>> model = nn.Sequential(nn.Linear(3, 2), nn.GELU(), nn.Linear(2, 1))
        >>> x = torch.randn(5, 3)
        >>> before = model(x)
        >>> add_units_(model[0], model[2], 4, between=[model[1]])
        slice(2, 6, None)
        >>> model[0], torch.allclose(model(x), before)
        (Linear(in_features=3, out_features=6, bias=True), True)

    References:
        The first step of expand, route, ablate: Cloud et al., 2024 (arXiv:2410.04332).
    """
    if not isinstance(extra, int) or isinstance(extra, bool) or extra < 1:
        raise SiteError(f"extra must be an integer of at least 1; got {extra!r}.")
    chain = _Chain(producer, consumer, between, optimizer)
    edits: list[_Edit] = []
    for layer, name, dim in chain.made:
        old = getattr(layer, name)
        shape = [extra if d == dim else size for d, size in enumerate(old.shape)]
        if init is None:
            new = resize.drawn_like(old, shape, generator)
        else:
            new = torch.zeros(shape, device=old.device, dtype=old.dtype)
            if name == "weight":
                init(new)
        edits.append((old, resize.extended(new, dim, optimizer, old), dim))
    for norm in chain.norms:
        for name, value in _FRESH_NORM.items():
            old = getattr(norm, name)
            if old is not None:
                new = old.detach().new_full((extra,), value)
                edits.append((old, resize.extended(new, 0, optimizer, old), 0))
    for layer, name, dim in chain.read:
        old = getattr(layer, name)
        shape = [extra * (size // chain.width) if d == dim else size for d, size in enumerate(old.shape)]
        edits.append((old, resize.extended(old.detach().new_zeros(shape), dim, optimizer, old), dim))
    chain.carry_out(edits, chain.width + extra)
    return slice(chain.width, chain.width + extra)


def remove_units_(
    producer: Layers,
    consumer: Layers,
    which: slice | Sequence[int],
    *,
    between: Sequence[nn.Module] = (),
    optimizer: Optimizer | None = None,
) -> None:
    """Take units out from between two layers of a model, in place: `add_units_` backwards.

    The model computes afterwards what it computed before with zeros for what the consumer read from these units.

    Args:
        producer: As for `add_units_`.
        consumer: As for `add_units_`.
        which: The units to take out: indices, or a slice such as `add_units_` returns.
        between: As for `add_units_`.
        optimizer: Its state for these parameters then is what belongs to the units that stay.

    Raises:
        SiteError: As for `add_units_`; or all units would go, or one does not exist.
        UsageError: The optimizer's state cannot be carried along.

    Examples:
        >>> model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1))
        >>> remove_units_(model[0], model[2], [1, 3], between=[model[1]])
        >>> model
        Sequential(
          (0): Linear(in_features=3, out_features=2, bias=True)
          (1): ReLU()
          (2): Linear(in_features=2, out_features=1, bias=True)
        )
    """
    chain = _Chain(producer, consumer, between, optimizer)
    indices = list(range(chain.width))[which] if isinstance(which, slice) else list(which)
    wrong = [index for index in indices if not isinstance(index, int) or not 0 <= index < chain.width]
    if wrong:
        raise SiteError(f"there is no unit {preview(wrong)}: they are numbered 0 to {chain.width - 1}.")
    gone = torch.zeros(chain.width, dtype=torch.bool)
    gone[indices] = True
    if bool(gone.all()):
        raise SiteError(f"all {chain.width} units would go: leave at least one, or take the layers out of the model.")
    edits = [(getattr(layer, name), resize.kept(gone, dim), dim) for layer, name, dim in chain.made]
    for norm in chain.norms:
        tensors = [getattr(norm, name) for name in _FRESH_NORM]
        edits += [(tensor, resize.kept(gone, 0), 0) for tensor in tensors if tensor is not None]
    for layer, name, dim in chain.read:
        old = getattr(layer, name)
        columns = gone.repeat_interleave(old.shape[dim] // chain.width)
        edits.append((old, resize.kept(columns, dim), dim))
    chain.carry_out(edits, chain.width - int(gone.sum()))


class _Chain:
    """Layers between which units can be put, or taken out from there.

    Attributes:
        width: How many units there are.
        made: The layers, names and dimensions of what makes them.
        norms: The batch norms between.
        read: The layers, names and dimensions of what reads them.

    Raises:
        SiteError: They cannot.
        UsageError: The optimizer's state cannot be carried along.
    """

    def __init__(
        self, producer: Layers, consumer: Layers, between: Sequence[nn.Module], optimizer: Optimizer | None
    ) -> None:
        producers, consumers = _layers(producer), _layers(consumer)
        inner = list(dict.fromkeys(module for given in between for module in given.modules()))
        self._modules = [*producers, *consumers, *inner]
        self._optimizer = optimizer
        self.norms = [module for module in inner if isinstance(module, units.BATCH_NORMS)]
        self.made = [(layer, *entry) for layer in producers for entry in _entries(layer, "output").items()]
        self.read = [(layer, *entry) for layer in consumers for entry in _entries(layer, "input").items()]
        widths = {units.n_units(layer, "output") for layer in producers}
        if len(widths) != 1:
            raise SiteError(f"the producers make different numbers of units: {preview(sorted(widths))}.")
        self.width = widths.pop()
        for end, layers in (("producer", producers), ("consumer", consumers)):
            if any(isinstance(layer, _CONVOLUTIONS) and layer.groups != 1 for layer in layers):
                raise SiteError(f"the {end} is a grouped convolution, whose groups must stay of one size.")
        made = {id(getattr(layer, name)) for layer, name, _ in self.made}
        if any(id(getattr(layer, name)) in made for layer, name, _ in self.read):
            raise SiteError("one weight both makes the units and reads them: untie it first, by a copy.")
        flattened = any(isinstance(module, nn.Flatten) for module in inner)
        flattened = flattened and all(isinstance(layer, _CONVOLUTIONS) for layer in producers)
        for layer in consumers:
            self._check_reader(layer, flattened=flattened)
        for module in inner:
            _check_between(module, self.width)
        if optimizer is not None:
            own = [parameter for module in self._modules for parameter in module.parameters()]
            resize.check_optimizer(optimizer, own)

    def _check_reader(self, layer: nn.Module, *, flattened: bool) -> None:
        read = units.n_units(layer, "input")
        if read == self.width:
            return
        if read % self.width or not isinstance(layer, nn.Linear):
            raise SiteError(
                f"the producer makes {self.width} units, but a consumer reads {read}: it does not read them, or not "
                "alone."
            )
        if not flattened:
            raise SiteError(
                f"the producer makes {self.width} units, and a consumer reads {read} features, {read // self.width} "
                "for each: in which order is only known between a convolution and a linear layer with an nn.Flatten "
                "in `between` (give nn.Flatten() for a call of torch.flatten)."
            )

    def carry_out(self, edits: Sequence[_Edit], width: int) -> None:
        """Change the tensors; one that several of the layers share, once."""
        for old, change, dim in {id(old): (old, change, dim) for old, change, dim in edits}.values():
            resize.resize(old, change, dim, self._modules, self._optimizer)
        for norm in self.norms:
            norm.num_features = width


def _layers(layers: Layers) -> list[nn.Module]:
    found = [layers] if isinstance(layers, nn.Module) else list(dict.fromkeys(layers))
    if not found or not all(isinstance(layer, nn.Module) for layer in found):
        raise SiteError(
            f"expected a module or several; got {preview(type(layer).__name__ for layer in found) or 'none'}."
        )
    return found


def _entries(layer: nn.Module, end: units.End) -> dict[str, int]:
    if isinstance(layer, _NO_LAYERS):
        raise SiteError(f"a {type(layer).__name__} is no layer between whose {end} and another layer units can be put.")
    return resize.entries(layer, end)


def _check_between(module: nn.Module, width: int) -> None:
    """Refuse a module between two layers that would not treat each unit by itself."""
    kind = type(module).__name__
    if isinstance(module, units.MIXING):
        raise SiteError(
            f"a {kind} lies between, which mixes the units: what becomes of one depends on how many others there are, "
            "whatever reads them. Choose layers with no such module between them."
        )
    if isinstance(module, units.BATCH_NORMS):
        if module.num_features != width:
            raise SiteError(f"a norm between is over {module.num_features} units, and the producer makes {width}.")
    elif next(module.parameters(recurse=False), None) is not None:
        raise SiteError(
            f"a {kind} with parameters lies between, of which it is not known what a unit more or less means: only "
            "batch norms and modules without parameters may."
        )
