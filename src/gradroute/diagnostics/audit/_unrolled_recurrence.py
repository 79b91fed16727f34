"""`unrolled`: runs step by step a recurrent network of torch, so that each use of a weight can be seen."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

_Use = Callable[[Tensor], Tensor]
_STEPS: dict[Any, Callable[..., Tensor]] = {
    torch.gru: torch.gru_cell,
    torch.rnn_tanh: torch.rnn_tanh_cell,
    torch.rnn_relu: torch.rnn_relu_cell,
}


def can_unroll(function: Any, args: tuple[Any, ...]) -> bool:
    """Whether this is the call of a recurrent network, on a batch whose sequences all have one length."""
    # Packed sequences come with a second tensor, the batch sizes.
    return (function in _STEPS or function is torch.lstm) and len(args) > 3 and isinstance(args[3], bool)


def unrolled(function: Any, args: tuple[Any, ...], use: _Use) -> tuple[Tensor, ...]:
    """What the call returns, but for dropout between layers, computed step by step.

    Args:
        function: `torch.gru`, `torch.lstm`, `torch.rnn_tanh` or `torch.rnn_relu`.
        args: Its arguments.
        use: Called with each weight before each step that uses it; what it returns is used.
    """
    x, initial, weights, has_biases, n_layers, _, _, bidirectional, batch_first = args
    x = x.transpose(0, 1) if batch_first else x
    directions = 1 + bidirectional
    stride = len(weights) // (n_layers * directions)
    states = list(initial) if function is torch.lstm else [initial]
    last: list[list[Tensor]] = []
    for layer in range(n_layers):
        outputs = []
        for direction in range(directions):
            number = layer * directions + direction
            own = weights[number * stride : (number + 1) * stride]
            state, hidden = [tensor[number] for tensor in states], []
            for step in reversed(x) if direction else x:
                state = _step(function, step, state, [use(weight) for weight in own], has_biases=has_biases)
                hidden.append(state[0])
            outputs.append(torch.stack(hidden[::-1] if direction else hidden))
            last.append(state)
        x = torch.cat(outputs, -1)
    return x.transpose(0, 1) if batch_first else x, *(torch.stack(found) for found in zip(*last, strict=True))


def _step(function: Any, x: Tensor, state: list[Tensor], weights: list[Tensor], *, has_biases: bool) -> list[Tensor]:
    if function is not torch.lstm:
        return [_STEPS[function](x, state[0], *weights)]
    (hidden, cell), (of_input, of_hidden) = state, weights[:2]
    biases = weights[2:4] if has_biases else (None, None)
    gates = F.linear(x, of_input, biases[0]) + F.linear(hidden, of_hidden, biases[1])
    open_, keep, new, show = gates.chunk(4, -1)
    cell = keep.sigmoid() * cell + open_.sigmoid() * new.tanh()
    hidden = show.sigmoid() * cell.tanh()
    projection = weights[4 if has_biases else 2 :]
    return [F.linear(hidden, projection[0]) if projection else hidden, cell]
