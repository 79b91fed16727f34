"""What is known of each kind of layer: which dimension of which weight counts units, who writes and who reads them.

This is the one table of such facts. Whoever needs to know a layer reads it here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

from torch import Tensor, nn
from torch.nn.utils import parametrize

from . import _torch_private as private
from .errors import SiteError

End = Literal["output", "input"]


@dataclass(frozen=True)
class LayerFacts:
    """What is known of one kind of layer.

    Attributes:
        writers: The parameters whose entries write the units of its output, and the dimension of each that counts them.
        readers: The same for those that read the units of its input.
        sizes: Which attribute repeats the size of which dimension of which parameter or buffer.
        channels: The dimension of input and output that holds the units, by each number that is right for all shapes.
    """

    writers: Mapping[str, int] = field(default_factory=dict)
    readers: Mapping[str, int] = field(default_factory=dict)
    sizes: Mapping[tuple[str, int], str] = field(default_factory=dict)
    channels: tuple[int, ...] = (-1,)


def _convolution(spatial: int) -> LayerFacts:
    sizes = {("weight", 0): "out_channels", ("weight", 1): "in_channels"}
    return LayerFacts({"weight": 0, "bias": 0}, {"weight": 1}, sizes, (1, -1 - spatial))


def _transposed_convolution(spatial: int) -> LayerFacts:
    sizes = {("weight", 0): "in_channels", ("weight", 1): "out_channels"}
    return LayerFacts({"weight": 1, "bias": 0}, {"weight": 0}, sizes, (1, -1 - spatial))


def _batch_norm(*channels: int) -> LayerFacts:
    sizes = {("weight", 0): "num_features", ("running_mean", 0): "num_features"}
    return LayerFacts({"weight": 0, "bias": 0}, {"weight": 0}, sizes, channels)


CONVOLUTIONS: Final = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED_CONVOLUTIONS: Final = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
BATCH_NORMS: Final = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
# Of these, an output unit depends on all input units, so that it matters to the others when one comes or goes.
MIXING: Final = (
    *(nn.LayerNorm, nn.RMSNorm, nn.GroupNorm, nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d),
    *(nn.LocalResponseNorm, nn.ChannelShuffle, nn.PixelShuffle, nn.PixelUnshuffle, nn.GLU),
    *(nn.Softmax, nn.Softmax2d, nn.Softmin, nn.LogSoftmax),
)

# Of these, each entry of the output is computed from that entry of the input alone, and they have no parameters.
ELEMENTWISE: Final = (
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.RReLU, nn.ELU, nn.CELU, nn.SELU, nn.GELU, nn.SiLU, nn.Mish, nn.Softplus),
    *(nn.Tanh, nn.Sigmoid, nn.LogSigmoid, nn.Hardtanh, nn.Hardsigmoid, nn.Hardswish, nn.Softsign, nn.Tanhshrink),
    *(nn.Hardshrink, nn.Softshrink, nn.Threshold, nn.Identity),
    *(nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout),
)

_LINEAR = LayerFacts(
    {"weight": 0, "bias": 0}, {"weight": 1}, {("weight", 0): "out_features", ("weight", 1): "in_features"}
)
_LINEAR_OF_GPT2 = LayerFacts({"weight": 1, "bias": 0}, {"weight": 0}, {("weight", 0): "nx", ("weight", 1): "nf"})
_NORM_OF_FEATURES = LayerFacts({"weight": 0, "bias": 0}, {"weight": 0})

_FACTS: Final[dict[type[nn.Module], LayerFacts]] = {
    nn.Linear: _LINEAR,
    nn.modules.linear.NonDynamicallyQuantizableLinear: _LINEAR,
    nn.Conv1d: _convolution(1),
    nn.Conv2d: _convolution(2),
    nn.Conv3d: _convolution(3),
    nn.ConvTranspose1d: _transposed_convolution(1),
    nn.ConvTranspose2d: _transposed_convolution(2),
    nn.ConvTranspose3d: _transposed_convolution(3),
    nn.Embedding: LayerFacts({"weight": 1}, sizes={("weight", 1): "embedding_dim"}),
    nn.LayerNorm: _NORM_OF_FEATURES,
    nn.RMSNorm: _NORM_OF_FEATURES,
    nn.GroupNorm: LayerFacts({"weight": 0, "bias": 0}, {"weight": 0}, channels=(1,)),
    nn.BatchNorm1d: _batch_norm(1),
    nn.BatchNorm2d: _batch_norm(1, -3),
    nn.BatchNorm3d: _batch_norm(1, -4),
}
_PRELU = LayerFacts(sizes={("weight", 0): "num_parameters"})


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
    weight, the input of a grouped convolution, the output of a grouped transposed one.

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
    return next((facts.channels for kind, facts in _FACTS.items() if isinstance(module, kind)), (-1,))


def size_attribute(module: nn.Module, name: str, dim: int) -> str | None:
    """The attribute of a module that repeats the size of one of its parameters or buffers along a dimension.

    Examples:
        >>> size_attribute(nn.Linear(3, 5), "weight", 0)
        'out_features'
    """
    if is_conv1d_of_transformers(module):
        facts = _LINEAR_OF_GPT2
    elif isinstance(module, nn.PReLU):
        facts = _PRELU
    elif private.is_batch_norm(module):  # nn.SyncBatchNorm too, of which nothing else is known
        facts = _FACTS[nn.BatchNorm1d]
    else:
        facts = next((known for kind, known in _FACTS.items() if isinstance(module, kind)), LayerFacts())
    return facts.sizes.get((name, dim))


def spread(values: Tensor, like: Tensor, dim: int) -> Tensor:
    """One value for each unit, [units], as a tensor that broadcasts against another whose `dim` counts units."""
    shape = [1] * like.ndim
    shape[dim] = -1
    return values.view(shape)


def _known_dims(module: nn.Module, on: End) -> Mapping[str, int] | None:
    kind = kind_of(module)  # the very classes: a subclass may compute something else
    facts = _LINEAR_OF_GPT2 if is_conv1d_of_transformers(module) else _FACTS.get(kind)
    if facts is None:
        return None
    if isinstance(module, (nn.LayerNorm, nn.RMSNorm)) and len(module.normalized_shape) != 1:
        return None
    if on == "output":
        # The dimension of a grouped transposed convolution counts the outputs of one group; of a plain one, its inputs.
        return None if isinstance(module, TRANSPOSED_CONVOLUTIONS) and module.groups != 1 else facts.writers
    if isinstance(module, CONVOLUTIONS) and module.groups != 1:
        return None
    return facts.readers or None
