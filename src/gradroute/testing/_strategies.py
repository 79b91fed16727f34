"""Hypothesis strategies for specs, labels and tensors that fit together."""

from __future__ import annotations

from collections.abc import Hashable
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
_NAMES: list[SearchStrategy[Hashable]] = [st.integers(0, 50), st.text(min_size=1, max_size=4)]


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

    @st.composite
    def drawn(draw: DrawFn) -> Any:
        units = draw(st.lists(st.integers(0, width - 1), unique=True, max_size=width))
        start, stop = sorted(draw(st.tuples(st.integers(0, width), st.integers(0, width))))
        mask = [unit in units for unit in range(width)]
        of_python = [draw(st.integers(0, width - 1)), slice(start, stop), units, tuple(units), mask, range(start, stop)]
        of_torch = [torch.tensor(units, dtype=torch.int64), torch.tensor(mask)]
        return draw(st.sampled_from(of_python) | st.sampled_from(of_torch))

    return drawn()


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

    @st.composite
    def drawn(draw: DrawFn) -> RoutingSpec:
        units = draw(st.integers(1, max_width)) if width is None else width
        kind = draw(st.sampled_from([*_NAMES, st.one_of(_NAMES)]))
        names = draw(st.lists(kind, min_size=1, max_size=max_labels, unique=True))
        rules: SearchStrategy[Any] = st.sampled_from(["all", "none", "shared"])
        spec = RoutingSpec(
            {name: draw(routes(units, hard=hard)) for name in names},
            units,
            shared=draw(st.just(()) | indices(units)),
            unlabeled=draw(rules | routes(units, hard=hard)),
        )
        if not silent or not draw(st.booleans()):
            return spec
        return RoutingSpec(spec.routes, units, shared=spec.shared, unlabeled=spec.unlabeled, silent=draw(_silent(spec)))

    return drawn()


def _silent(spec: RoutingSpec) -> SearchStrategy[Any]:
    """What a spec may be given for `silent`."""
    n = len(spec.labels)

    def found(bits: list[bool]) -> dict[Hashable, list[Hashable]]:
        named = zip([*spec.labels, UNLABELED], (bits[row * n : row * n + n] for row in range(n + 1)), strict=True)
        chosen = {
            label: [other for other, bit in zip(spec.labels, row, strict=True) if bit and other != label]
            for label, row in named
        }
        return {label: several for label, several in chosen.items() if spec.exclusive(*several)}

    rules: SearchStrategy[Any] = st.lists(st.booleans(), min_size=n * n + n, max_size=n * n + n).map(found)
    everywhere = "others" not in spec.labels and any(
        spec.exclusive(*(other for other in spec.labels if other != label)) for label in spec.labels
    )
    return st.just("others") | rules if everywhere else rules


#: The kinds of labels that `label_tensors` draws.
KINDS = ("integer", "multi-hot", "mixture")


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

    @st.composite
    def drawn(draw: DrawFn) -> Tensor:
        chosen = kind or draw(st.sampled_from(KINDS))
        size = torch.Size(shape).numel()
        if chosen == "integer":
            keys = [UNLABELED, *spec.encode(list(spec.labels)).tolist()]
            ids = draw(st.lists(st.sampled_from(keys), min_size=size, max_size=size))
            integers = draw(st.sampled_from([torch.int64, torch.int32, torch.int16]))
            return torch.tensor(ids, dtype=integers).reshape(shape)
        n = len(spec.labels)
        entries = st.booleans() if chosen == "multi-hot" else st.sampled_from([0.0, 0.25, 0.5, 1.0])
        rows = draw(st.lists(st.lists(entries, min_size=n, max_size=n), min_size=size, max_size=size))
        if chosen == "mixture":
            rows = [[0.5 * weight for weight in row] if _looks_like_a_set(row) else row for row in rows]
        dtype = torch.bool if chosen == "multi-hot" else draw(st.sampled_from([torch.float32, torch.float64]))
        return torch.tensor(rows, dtype=dtype).reshape(*shape, n)

    return drawn()


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
