"""Hypothesis strategies for specs, labels and tensors that fit together."""

from __future__ import annotations

from collections.abc import Hashable
from functools import cache, partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..errors import SpecError, UsageError, missing_package

try:
    from hypothesis import strategies as st
except ImportError as error:
    raise ImportError(missing_package("gradroute.testing's strategies", "hypothesis", "testing")) from error

from ..spec._masks import UNLABELED
from ..spec._route import Route
from ..spec._spec import RoutingSpec

if TYPE_CHECKING:
    from hypothesis.strategies import DrawFn, SearchStrategy

# Exact in every dtype, so that references need no tolerance.
_WEIGHTS = st.sampled_from([-2.0, -1.0, -0.5, 0.0, 0.25, 0.5, 1.0, 2.0])


def indices(width: int) -> SearchStrategy[Any]:
    """An index of each kind that a route takes: integers, slices, sequences, masks, tensors.

    Args:
        width: The number of units.

    Examples:
        >>> from hypothesis import given
        >>> import gradroute as gr
        >>> @given(indices(3))
        ... def test(index):
        ...     assert set(gr.Route(index).units(3)) <= {0, 1, 2}
        >>> test()
    """
    return _indices(width)


# Strategies are made once for their arguments: to make one takes longer than to draw from it.
@cache
def _indices(width: int) -> SearchStrategy[Any]:
    unit, end = st.integers(0, width - 1), st.integers(0, width)
    units = st.lists(unit, unique=True, max_size=width)
    ends = st.tuples(end, end).map(sorted)

    def mask(units: list[int]) -> list[bool]:
        return [unit in units for unit in range(width)]

    of_python = [unit, ends.map(lambda ends: slice(*ends)), units, units.map(tuple), units.map(mask)]
    of_python.append(ends.map(lambda ends: range(*ends)))
    of_torch = [
        units.map(lambda units: torch.tensor(units, dtype=torch.int64)),
        units.map(lambda units: torch.tensor(mask(units))),
    ]
    return st.one_of(*of_python, *of_torch)


def routes(width: int, *, hard: bool = False) -> SearchStrategy[Route]:
    """Routes over `width` units, of weights from -2 to 2, exact in every dtype; 1 and 0 where `hard`.

    Args:
        width: The number of units.
        hard: Only weights 1 and 0.

    Examples:
        >>> from hypothesis import given
        >>> @given(routes(3, hard=True))
        ... def test(route):
        ...     assert (route.weight, route.elsewhere) == (1.0, 0.0)
        >>> test()
    """
    return _routes(width, hard)


@cache
def _routes(width: int, hard: bool) -> SearchStrategy[Route]:
    return st.builds(Route, indices(width)) if hard else st.builds(Route, indices(width), _WEIGHTS, _WEIGHTS)


def specs(
    width: int | None = None, *, hard: bool = False, silent: bool = True, max_width: int = 6, max_labels: int = 4
) -> SearchStrategy[RoutingSpec]:
    """Specs of any kind: integer or string labels, shared units, any rule for unlabeled data, units that are silent.

    Args:
        width: The number of units; by default any from 1 to `max_width`.
        hard: Only weights 1 and 0.
        silent: Whether some have silent units, so that the forward pass depends on labels.
        max_width: The most units.
        max_labels: The most labels.

    Raises:
        SpecError: `width` or `max_width` is below 1.

    Examples:
        >>> from hypothesis import given
        >>> @given(specs(width=3, max_labels=2))
        ... def test(spec):
        ...     assert spec.mask(spec.encode(list(spec.labels))).shape == (len(spec.labels), 3)
        >>> test()
    """
    if (max_width if width is None else width) < 1:
        raise SpecError(f"a spec has at least 1 unit; got width={width}, max_width={max_width}.")

    widths = st.integers(1, max_width) if width is None else st.just(width)
    plain = _plain_specs(widths, max_labels, hard)
    return plain | plain.flatmap(_silent) if silent else plain


def silent_specs(width: int | None = None, *, hard: bool = False) -> SearchStrategy[RoutingSpec]:
    """Specs as `specs` draws them, of which each has silent units."""
    every = specs(width, hard=hard, silent=False).filter(lambda spec: bool(spec.exclusive(*spec.labels)))
    return every.flatmap(_silent).map(_at_least_for_unlabeled)


@st.composite
def _plain_specs(draw: DrawFn, widths: SearchStrategy[int], max_labels: int, hard: bool) -> RoutingSpec:
    units = draw(widths)
    return RoutingSpec(
        {name: draw(routes(units, hard=hard)) for name in draw(_names(max_labels))},
        units,
        shared=draw(_shared(units)),
        unlabeled=draw(_unlabeled(units, hard)),
    )


@cache
def _names(most: int) -> SearchStrategy[list[Hashable]]:
    kinds: list[SearchStrategy[Hashable]] = [st.integers(0, 50), st.text(min_size=1, max_size=4)]
    kinds.append(st.one_of(kinds))
    return st.one_of(*(st.lists(kind, min_size=1, max_size=most, unique=True) for kind in kinds))


@cache
def _shared(width: int) -> SearchStrategy[Any]:
    return st.just(()) | indices(width)


@cache
def _unlabeled(width: int, hard: bool) -> SearchStrategy[Any]:
    return st.sampled_from(["all", "none", "shared"]) | routes(width, hard=hard)


@cache
def _numbers(count: int, below: int) -> SearchStrategy[list[int]]:
    """So many integers, each from 0 to `below`, without it: one draw of bytes, and not one of each."""
    size = 1 if below <= 2**8 else 8

    def numbers(drawn: bytes) -> list[int]:
        return [int.from_bytes(drawn[i : i + size]) % below for i in range(0, count * size, size)]

    return st.binary(min_size=count * size, max_size=count * size).map(numbers)


def _silent(spec: RoutingSpec) -> SearchStrategy[RoutingSpec]:
    """The same spec with silent units, unless those that are drawn are none."""
    n = len(spec.labels)

    def found(bits: list[int]) -> dict[Hashable, list[Hashable]]:
        named = zip([*spec.labels, UNLABELED], (bits[row * n : row * n + n] for row in range(n + 1)), strict=True)
        chosen = {
            label: [other for other, bit in zip(spec.labels, row, strict=True) if bit and other != label]
            for label, row in named
        }
        return {label: several for label, several in chosen.items() if spec.exclusive(*several)}

    rules: SearchStrategy[Any] = _numbers(n * n + n, 2).map(found)
    everywhere = "others" not in spec.labels and any(
        spec.exclusive(*(other for other in spec.labels if other != label)) for label in spec.labels
    )
    return (st.just("others") | rules if everywhere else rules).map(partial(_with_silent, spec))


def _with_silent(spec: RoutingSpec, silent: Any) -> RoutingSpec:
    return RoutingSpec(spec.routes, spec.width, shared=spec.shared, unlabeled=spec.unlabeled, silent=silent)


def _at_least_for_unlabeled(spec: RoutingSpec) -> RoutingSpec:
    return spec if spec.has_silent else _with_silent(spec, {UNLABELED: spec.labels})


#: The kinds of labels that `label_tensors` draws.
KINDS = ("integer", "multi-hot", "mixture")
_INTEGERS = st.sampled_from([torch.int64, torch.int32, torch.int16])
_FLOATS = st.sampled_from([torch.float32, torch.float64])
_AMOUNTS = [0.0, 0.25, 0.5, 1.0]


def label_tensors(spec: RoutingSpec, shape: tuple[int, ...], kind: str | None = None) -> SearchStrategy[Tensor]:
    """Labels for a spec, unlabeled ones among them, of a leading shape.

    Args:
        spec: The spec.
        shape: Of the examples, such as (8,), or of their tokens, such as (8, 5).
        kind: ``"integer"``, ``"multi-hot"`` or ``"mixture"``; any of them by default.

    Raises:
        UsageError: The kind is none of these.

    Examples:
        >>> from hypothesis import given
        >>> spec = RoutingSpec.one_per_label(3)
        >>> @given(label_tensors(spec, (8, 5)))
        ... def test(labels):
        ...     assert spec.mask(labels).shape == (8, 5, 3)
        >>> test()
    """
    if kind not in (None, *KINDS):
        raise UsageError(f"kind must be one of {', '.join(KINDS)} or None; got {kind!r}.")

    return _label_tensors(spec, torch.Size(shape), kind)


@st.composite
def _label_tensors(draw: DrawFn, spec: RoutingSpec, shape: torch.Size, kind: str | None) -> Tensor:
    chosen = kind or draw(st.sampled_from(KINDS))
    size, n = shape.numel(), len(spec.labels)
    if chosen == "integer":
        keys = [UNLABELED, *spec.encode(list(spec.labels)).tolist()]
        ids = [keys[i] for i in draw(_numbers(size, len(keys)))]
        return torch.tensor(ids, dtype=draw(_INTEGERS)).reshape(shape)
    if chosen == "multi-hot":
        return torch.tensor(draw(_numbers(size * n, 2)), dtype=torch.bool).reshape(*shape, n)
    amounts = [_AMOUNTS[i] for i in draw(_numbers(size * n, len(_AMOUNTS)))]
    rows = [amounts[i : i + n] for i in range(0, size * n, n)]
    rows = [[0.5 * weight for weight in row] if _looks_like_a_set(row) else row for row in rows]
    return torch.tensor(rows, dtype=draw(_FLOATS)).reshape(*shape, n)


def _looks_like_a_set(row: list[float]) -> bool:
    """Whether a mixture of such rows alone would be warned of: zeros and ones, and several ones."""
    return sum(row) > 1 and all(weight in (0, 1) for weight in row)


def tensors(shape: tuple[int, ...], *, dtype: torch.dtype = torch.float32) -> SearchStrategy[Tensor]:
    """Tensors of normal numbers, by a seed that hypothesis draws.

    Args:
        shape: Their shape.
        dtype: Their dtype.

    Examples:
        >>> from hypothesis import given
        >>> @given(tensors((2, 3), dtype=torch.float64))
        ... def test(x):
        ...     assert x.shape == (2, 3) and x.isfinite().all()
        >>> test()
    """

    def made(seed: int) -> Tensor:
        return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)

    return st.integers(0, 2**31 - 1).map(made)
