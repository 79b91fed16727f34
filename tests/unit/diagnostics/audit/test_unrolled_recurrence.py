"""A recurrent network that is run step by step returns what torch returns for it in one operation."""

import pytest
import torch
from torch import nn

from gradroute.diagnostics.audit._weight_uses import WeightUses


@pytest.mark.filterwarnings("ignore:LSTM with projections")  # that oneDNN does not know them
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize(
    "options", [{}, {"num_layers": 2}, {"bidirectional": True, "num_layers": 2}, {"bias": False}], ids=str
)
@pytest.mark.parametrize("kind", [nn.GRU, nn.LSTM, nn.RNN, "relu", "projected"])
def test_outputs_and_last_states_are_those_of_torch(kind, options, batch_first):
    options = {**options, "batch_first": batch_first}
    if kind == "relu":
        network = nn.RNN(3, 4, nonlinearity="relu", **options)
    elif kind == "projected":
        network = nn.LSTM(3, 4, proj_size=2, **options)
    else:
        network = kind(3, 4, **options)
    x = torch.randn(5, 6, 3)
    expected = network(x)
    parameters = dict(network.named_parameters())
    with WeightUses(parameters) as uses:
        outputs = network(x)
    assert type(outputs) is type(expected)
    torch.testing.assert_close(outputs, expected)
    n_steps = x.shape[1 if batch_first else 0]
    assert {name: len(edges) for name, edges in uses.edges.items()} == dict.fromkeys(parameters, n_steps)
