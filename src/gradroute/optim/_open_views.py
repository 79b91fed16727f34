"""Steps what is open of a parameter alone, as a view of it: what a step never sees need not be put back after it."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn, optim
from torch.optim import Optimizer

from .. import _torch_private as private
from ._slices import MOST_RUNS

ELEMENTWISE = (
    *(optim.Adam, optim.AdamW, optim.NAdam, optim.RAdam, optim.Adamax, optim.Adagrad, optim.Adadelta),
    *(optim.RMSprop, optim.Rprop, optim.SGD, optim.ASGD),
)
"""Optimizers by which an entry's step depends on its own gradient and state, and on counts. These very classes: of what
others make of them, nothing is known."""

ALIGNED = 256
"""Views begin and end at multiples of so many entries. The last bit of what is computed of an entry hangs on whether
it is one of the last of a tensor, for which there was no whole vector left; so it is in the view what it is in the
whole."""


class OpenPart(NamedTuple):
    """What a step is to see of a parameter.

    Attributes:
        parameter: The parameter.
        gradient: Its gradient.
        state: Its state, of the optimizer.
        seen: What the step sees, as slices of all entries in a row.
        closed: The entries among these that it may not change.
    """

    parameter: nn.Parameter
    gradient: Tensor
    state: dict[str, Any]
    seen: Sequence[slice]
    closed: Sequence[slice]


def open_part(
    optimizer: Optimizer, parameter: nn.Parameter, gradient: Tensor | None, closed_rows: Sequence[slice]
) -> OpenPart | None:
    """What a step is to see of a parameter of which these rows are closed; None where it must see all of it."""
    if type(optimizer) not in ELEMENTWISE or getattr(optimizer, "grad_scale", None) is not None or gradient is None:
        return None
    state = optimizer.state.get(parameter, {})
    if not state or any(value is None for value in state.values()):  # a first step makes state of all entries
        return None
    size = parameter.numel() // max(parameter.shape[0], 1) if parameter.ndim else 0
    seen, margins = _places(tuple([(rows.start * size, rows.stop * size) for rows in closed_rows]), parameter.numel())
    if not seen:
        return None
    entries = [value for value in state.values() if isinstance(value, Tensor) and value.shape == parameter.shape]
    for tensor in (parameter, gradient, *entries):
        plain = type(tensor) in (Tensor, nn.Parameter) and tensor.layout is torch.strided
        if not plain or tensor.dtype != parameter.dtype or not tensor.is_contiguous():
            return None
    return OpenPart(parameter, gradient, state, seen, margins)


@functools.lru_cache(maxsize=1024)  # it is asked of each parameter in each step
def _places(closed_entries: tuple[tuple[int, int], ...], length: int) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """What a step is to see of so many entries in a row, and which of it are closed; nothing where it must see all."""
    closed = _merged([slice(start, stop) for start, stop in closed_entries], length)
    opened = _between(closed, slice(0, length))
    seen = _merged([slice(s.start // ALIGNED * ALIGNED, -(-s.stop // ALIGNED) * ALIGNED) for s in opened], length)
    if not 0 < len(seen) <= MOST_RUNS or sum(s.stop - s.start for s in seen) > length - ALIGNED:
        return (), ()
    return tuple(seen), tuple([piece for s in seen for piece in _between(opened, s)])


def step_open(optimizer: Optimizer, parts: Sequence[OpenPart]) -> None:
    """Step these parts as the optimizer would step their parameters; it must leave those alone itself."""
    leaves: dict[nn.Parameter, list[nn.Parameter]] = {}
    state: dict[nn.Parameter, dict[str, Any]] = {}
    kept: list[tuple[Tensor, Tensor]] = []
    for parameter, gradient, own, seen, closed in parts:
        entries = {key: _in_a_row(value) for key, value in own.items() if _has_entries(value, parameter)}
        counts = {key: value for key, value in own.items() if key not in entries}
        values, gradients = _in_a_row(parameter), _in_a_row(gradient)
        for place in closed:
            margins = [tensor[place] for tensor in (values, *entries.values())]
            kept += [(margin, margin.clone()) for margin in margins]
        for place in seen:
            leaf = nn.Parameter(values[place], requires_grad=False)
            leaf.grad = gradients[place]
            state[leaf] = {key: value[place] for key, value in entries.items()} | counts
            leaves.setdefault(parameter, []).append(leaf)
            # All views of a parameter begin from the same counts, and those of the first are the parameter's.
            counts = {key: value.clone() if isinstance(value, Tensor) else value for key, value in counts.items()}
    groups = [
        {**group, "params": [leaf for parameter in group["params"] for leaf in leaves.get(parameter, ())]}
        for group in optimizer.param_groups
    ]
    try:
        private.stand_in(optimizer, [group for group in groups if group["params"]], state).step()
    finally:
        for margin, before in kept:
            margin.copy_(before)
    for parameter, _, own, _, _ in parts:
        first = state[leaves[parameter][0]]
        own.update({key: first[key] for key, value in own.items() if not _has_entries(value, parameter)})
        torch.autograd.graph.increment_version(parameter)  # a fused step of a view does not


def _has_entries(value: Any, parameter: Tensor) -> bool:
    return isinstance(value, Tensor) and value.shape == parameter.shape


def _in_a_row(tensor: Tensor) -> Tensor:
    return (tensor.detach() if tensor.requires_grad else tensor).view(-1)


def _merged(places: Sequence[slice], length: int) -> list[slice]:
    """The same entries, of as many as there are, in increasing slices that do not touch."""
    merged: list[slice] = []
    for place in sorted(places, key=lambda place: place.start):
        stop = min(place.stop, length)
        if merged and place.start <= merged[-1].stop:
            merged[-1] = slice(merged[-1].start, max(merged[-1].stop, stop))
        else:
            merged.append(slice(place.start, stop))
    return merged


def _between(places: Sequence[slice], whole: slice) -> list[slice]:
    """What increasing slices leave of a whole."""
    left, start = [], whole.start
    for place in places:
        if place.stop <= whole.start or place.start >= whole.stop:
            continue
        if place.start > start:
            left.append(slice(start, place.start))
        start = max(start, place.stop)
    if start < whole.stop:
        left.append(slice(start, whole.stop))
    return left
