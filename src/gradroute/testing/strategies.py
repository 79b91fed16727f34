"""Hypothesis strategies for specs, labels and tensors that fit together."""

from __future__ import annotations

from collections.abc import Hashable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

try:
    from hypothesis import strategies as st
except ImportError as error:
    raise ImportError("gradroute.testing's strategies need hypothesis: pip install gradroute[testing].") from error

from ..masks import UNLABELED
from ..spec import Route, RoutingSpec

if TYPE_CHECKING:
    from hypothesis.strategies import DrawFn, SearchStrategy

# Exact in every dtype, so that references need no tolerance.
_WEIGHTS = st.sampled_from([-2.0, -1.0, -0.5, 0.0, 0.25, 0.5, 1.0, 2.0])
_NAMES: list[SearchStrategy[Hashable]] = [st.integers(0, 50), st.text(min_size=1, max_size=4)]


@st.composite
def indices(draw: DrawFn, width: int) -> Any:
    """An index of each kind that a route takes: integers, slices, sequences, masks, tensors."""
    units = draw(st.lists(st.integers(0, width - 1), unique=True, max_size=width))
    start, stop = sorted(draw(st.tuples(st.integers(0, width), st.integers(0, width))))
    mask = [unit in units for unit in range(width)]
    of_python = [draw(st.integers(0, width - 1)), slice(start, stop), units, tuple(units), mask, range(start, stop)]
    of_torch = [torch.tensor(units, dtype=torch.int64), torch.tensor(mask)]
    return draw(st.sampled_from(of_python) | st.sampled_from(of_torch))


def routes(width: int, *, hard: bool = False) -> SearchStrategy[Route]:
    """Routes over `width` units, of weights from -2 to 2, exact in every dtype; 1 and 0 where `hard`."""
    return st.builds(Route, indices(width)) if hard else st.builds(Route, indices(width), _WEIGHTS, _WEIGHTS)


@st.composite
def specs(
    draw: DrawFn, width: int | None = None, *, hard: bool = False, max_width: int = 6, max_labels: int = 4
) -> RoutingSpec:
    """Specs of any kind: integer or string labels, shared units, any rule for unlabeled data.

    Args:
        draw: Given by hypothesis.
        width: The number of units; by default any from 1 to `max_width`.
        hard: Only weights 1 and 0.
        max_width: The most units.
        max_labels: The most labels.
    """
    width = draw(st.integers(1, max_width)) if width is None else width
    kind = draw(st.sampled_from([*_NAMES, st.one_of(_NAMES)]))
    names = draw(st.lists(kind, min_size=1, max_size=max_labels, unique=True))
    rules: SearchStrategy[Any] = st.sampled_from(["all", "none", "shared"])
    return RoutingSpec(
        {name: draw(routes(width, hard=hard)) for name in names},
        width,
        shared=draw(st.just(()) | indices(width)),
        unlabeled=draw(rules | routes(width, hard=hard)),
    )


#: The kinds of labels that `label_tensors` draws.
KINDS = ("integer", "multi-hot", "mixture")


@st.composite
def label_tensors(draw: DrawFn, spec: RoutingSpec, shape: tuple[int, ...], kind: str | None = None) -> Tensor:
    """Labels for a spec, unlabeled ones among them, of a leading shape.

    Args:
        draw: Given by hypothesis.
        spec: The spec.
        shape: Of the examples, such as (8,), or of their tokens, such as (8, 5).
        kind: ``"integer"``, ``"multi-hot"`` or ``"mixture"``; any of them by default.
    """
    kind = kind or draw(st.sampled_from(KINDS))
    size = torch.Size(shape).numel()
    if kind == "integer":
        keys = [UNLABELED, *spec.encode(list(spec.labels)).tolist()]
        values = draw(st.lists(st.sampled_from(keys), min_size=size, max_size=size))
        return torch.tensor(values, dtype=draw(st.sampled_from([torch.int64, torch.int32, torch.int16]))).reshape(shape)
    n = len(spec.labels)
    entries = st.booleans() if kind == "multi-hot" else st.sampled_from([0.0, 0.25, 0.5, 1.0])
    rows = draw(st.lists(st.lists(entries, min_size=n, max_size=n), min_size=size, max_size=size))
    dtype = torch.bool if kind == "multi-hot" else draw(st.sampled_from([torch.float32, torch.float64]))
    return torch.tensor(rows, dtype=dtype).reshape(*shape, n)


def tensors(shape: tuple[int, ...], *, dtype: torch.dtype = torch.float32) -> SearchStrategy[Tensor]:
    """Tensors of normal numbers, by a seed that hypothesis draws."""

    def made(seed: int) -> Tensor:
        return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)

    return st.integers(0, 2**31 - 1).map(made)
