"""Which entries of a layer's parameters belong to a unit: told by changing the unit, not by a second table."""

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from gradroute.errors import SiteError
from gradroute.unit_dims import channel_dims, n_units, spread, unit_dims

LAYERS = {
    "Linear": (lambda: nn.Linear(3, 4), (2, 3)),
    "Linear without bias": (lambda: nn.Linear(3, 4, bias=False), (2, 3)),
    "Conv1D of transformers": (lambda: Conv1D(4, 3), (2, 3)),
    "Conv1d": (lambda: nn.Conv1d(3, 4, 2), (2, 3, 5)),
    "Conv2d": (lambda: nn.Conv2d(3, 4, 2), (2, 3, 5, 6)),
    "Conv3d": (lambda: nn.Conv3d(3, 4, 2), (2, 3, 5, 6, 4)),
    "ConvTranspose1d": (lambda: nn.ConvTranspose1d(3, 4, 2, stride=2), (2, 3, 5)),
    "ConvTranspose2d": (lambda: nn.ConvTranspose2d(3, 4, 2, output_padding=1, stride=2), (2, 3, 5, 6)),
    "ConvTranspose3d": (lambda: nn.ConvTranspose3d(3, 4, 2, bias=False), (2, 3, 5, 6, 4)),
    "LayerNorm": (lambda: nn.LayerNorm(4), (2, 4)),
    "RMSNorm": (lambda: nn.RMSNorm(4), (2, 4)),
    "BatchNorm1d": (lambda: nn.BatchNorm1d(4), (3, 4, 2)),
    "BatchNorm2d": (lambda: nn.BatchNorm2d(4), (3, 4, 5, 6)),
    "GroupNorm": (lambda: nn.GroupNorm(2, 4), (3, 4, 5)),
}


@pytest.mark.parametrize("dim_of", [0, -1], ids=["from the front", "from the back"])
@pytest.mark.parametrize("name", LAYERS)
def test_what_writes_a_unit_is_all_that_its_output_depends_on(name, dim_of):
    make, shape = LAYERS[name]
    layer, x = make(), torch.randn(shape)
    dims = unit_dims(layer, "output")
    assert dims.keys() == dict(layer.named_parameters()).keys()
    y = layer(x)
    dim = channel_dims(layer)[dim_of]
    unit = 1
    y.select(dim, unit).square().sum().backward()
    for parameter_name, parameter in layer.named_parameters():
        rows = (
            parameter.grad.movedim(dims[parameter_name], 0).flatten(1)
            if parameter.ndim > 1
            else parameter.grad[:, None]
        )
        assert rows.any(1).nonzero().flatten().tolist() == [unit], parameter_name
    assert n_units(layer, "output") == y.shape[dim]


@pytest.mark.parametrize("name", [name for name in LAYERS if "Norm" not in name])
def test_what_reads_a_unit_is_all_that_a_batch_of_this_unit_alone_teaches(name):
    make, shape = LAYERS[name]
    layer = make()
    dims = unit_dims(layer, "input")
    assert list(dims) == ["weight"], "a bias reads nothing"
    unit, dim = 2, channel_dims(layer)[0]
    x = torch.zeros(shape)
    x.select(dim, unit).normal_()
    layer(x).sum().backward()
    columns = layer.weight.grad.movedim(dims["weight"], 0).flatten(1)
    assert columns.any(1).nonzero().flatten().tolist() == [unit]
    assert n_units(layer, "input") == shape[dim]


@pytest.mark.parametrize(
    ("layer", "on"),
    [
        (nn.Conv2d(4, 4, 2, groups=2), "input"),
        (nn.ConvTranspose1d(4, 4, 2, groups=2), "output"),
        (nn.Embedding(3, 4), "input"),
        (nn.LayerNorm((2, 4)), "output"),
        (nn.LSTM(3, 4), "output"),
        (type("Mine", (nn.Linear,), {})(3, 4), "output"),
        (nn.utils.parametrizations.weight_norm(nn.Linear(3, 4)), "output"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else value,
)
def test_of_others_it_is_not_known(layer, on):
    assert unit_dims(layer, on) is None
    with pytest.raises(SiteError, match=f"no known parameters for the units of its {on}"):
        n_units(layer, on)


def test_groups_leave_one_end_of_a_convolution_known():
    """Of a plain one the output, of a transposed one the input: there a whole row of the weight is one unit's."""
    assert unit_dims(nn.Conv1d(4, 6, 2, groups=2), "output") == {"weight": 0, "bias": 0}
    transposed = nn.ConvTranspose1d(4, 6, 2, groups=2)
    assert unit_dims(transposed, "input") == {"weight": 0}
    x = torch.zeros(2, 4, 5)
    x[:, 1].normal_()
    transposed(x).sum().backward()
    assert transposed.weight.grad.flatten(1).any(1).nonzero().flatten().tolist() == [1]


@pytest.mark.parametrize("dim", [0, 1, 2, -1])
def test_values_are_spread_along_their_dimension_and_no_other(dim):
    like = torch.ones(4, 4, 4)
    values = torch.arange(4.0)
    whole = spread(values, like, dim) * like
    for unit in range(4):
        assert whole.select(dim, unit).eq(values[unit]).all()
