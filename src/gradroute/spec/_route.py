"""`Route`: which units one label may teach, and the forms that an index may have."""

from __future__ import annotations

import math
import numbers
import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from torch import Tensor

from ..errors import SpecError, preview

Index: TypeAlias = int | slice | Sequence[int] | Sequence[bool] | Tensor
"""Units: one, a slice, several, or a bool mask as long as the width; see `Route`."""


@dataclass(frozen=True, slots=True)
class Route:
    """The units that one label may teach.

    Args:
        index: The units: an integer, a slice, a sequence of integers (list, tuple, range, array or 1-D integer
            tensor), or a 1-D bool mask as long as the width. Integers count from 0 and are never negative.
        weight: Multiplies the gradient on those units. Any finite number; a negative one reverses the learning.
        elsewhere: Multiplies the gradient on all other units. 0 stops it.

    Raises:
        SpecError: The index is none of these, or a weight is not a finite number.

    Examples:
        >>> Route(3)
        Route(3)
        >>> Route(slice(0, 4), weight=0.5, elsewhere=-0.1)
        Route(slice(0, 4), weight=0.5, elsewhere=-0.1)

    References:
        Soft and negative mask weights: Cloud et al., "Gradient Routing", 2024 (arXiv:2410.04332), section 3.
    """

    index: Index
    weight: float = 1.0
    elsewhere: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "index", canonical_index(self.index))
        object.__setattr__(self, "weight", _finite(self.weight, "weight"))
        object.__setattr__(self, "elsewhere", _finite(self.elsewhere, "elsewhere"))

    def units(self, width: int) -> tuple[int, ...]:
        """The units of this route in a tensor with `width` units, in increasing order, each once.

        Raises:
            SpecError: The index reaches outside the width, or a bool mask has another length.

        Examples:
            >>> Route(slice(-2, None)).units(5)
            (3, 4)
            >>> Route([True, False, True]).units(3)
            (0, 2)
        """
        return units_of(self.index, width)

    def resolved(self, width: int) -> Route:
        """This route with its index as a tuple of units: routes with the same units then compare equal.

        Raises:
            SpecError: As `units`.
        """
        return Route(self.units(width), self.weight, self.elsewhere)

    def repeat(self, k: int, width: int) -> Route:
        """The route over width * k units, with `k` consecutive units for each unit of this one.

        Raises:
            SpecError: As `units`.
        """
        return Route(repeated(self.units(width), k), self.weight, self.elsewhere)

    def __hash__(self) -> int:
        # A slice is hashable only from Python 3.12 on.
        index = self.index
        key = ("slice", index.start, index.stop, index.step) if isinstance(index, slice) else index
        return hash((key, self.weight, self.elsewhere))

    def __repr__(self) -> str:
        weight = f", weight={self.weight!r}" if self.weight != 1.0 else ""
        elsewhere = f", elsewhere={self.elsewhere!r}" if self.elsewhere != 0.0 else ""
        return f"Route({shown(self.index)}{weight}{elsewhere})"


# ---------------------------------------------------------------------- forms of an index


def canonical_index(index: Any) -> int | slice | tuple[int, ...] | tuple[bool, ...]:
    """The index as a plain int, slice, or tuple of all ints or all bools, whatever array type it came in.

    Raises:
        SpecError: It is none of these.
    """
    if isinstance(index, slice):
        parts = (index.start, index.stop, index.step)
        try:
            return slice(*(None if part is None else operator.index(part) for part in parts))
        except TypeError:
            raise SpecError(f"a slice index needs integer bounds; got {index!r}.") from None
    if hasattr(index, "tolist"):  # numpy arrays and scalars, tensors
        index = index.tolist()
    if isinstance(index, numbers.Integral) and not isinstance(index, bool):
        return int(index)
    if isinstance(index, Iterable) and not isinstance(index, str | bytes | Mapping):
        items = tuple(item.item() if hasattr(item, "item") else item for item in index)
        if all(isinstance(item, bool) for item in items):
            return items
        if all(isinstance(item, int) and not isinstance(item, bool) for item in items):
            return items
    raise SpecError(f"an index must be an integer, a slice, a sequence of integers or a 1-D bool mask; got {index!r}.")


def units_of(index: Any, width: int) -> tuple[int, ...]:
    """The units of a canonical index, in increasing order, each once.

    Raises:
        SpecError: It reaches outside the width, or a bool mask has another length.
    """
    if isinstance(index, slice):
        for bound in (index.start, index.stop):
            if bound is not None and not -width <= bound <= width:
                raise SpecError(f"{index!r} reaches outside the width of {width} units.")
        return tuple(sorted(range(*index.indices(width))))
    items = (index,) if isinstance(index, int) else index
    if items and isinstance(items[0], bool):
        if len(items) != width:
            raise SpecError(f"a bool mask must have one entry per unit: expected {width}, got {len(items)}.")
        return tuple(unit for unit, chosen in enumerate(items) if chosen)
    outside = [unit for unit in items if not 0 <= unit < width]
    if outside:
        raise SpecError(f"index {preview(outside)} is outside the width: units are numbered 0 to {width - 1}.")
    return tuple(sorted(set(items)))


def shown(index: Any) -> str:
    """The shortest code for an index: consecutive units as a slice, whose own repr always shows three parts."""
    if isinstance(index, tuple) and index and not isinstance(index[0], bool):
        if len(index) == 1:
            return repr(index[0])
        if index == tuple(range(index[0], index[0] + len(index))):
            index = slice(index[0], index[0] + len(index))
    if isinstance(index, slice) and index.step is None:
        return f"slice({index.start!r}, {index.stop!r})"
    return repr(index)


def repeated(units: tuple[int, ...], k: int) -> tuple[int, ...]:
    """The units of a spec with `k` consecutive units for each of these."""
    return tuple(unit * k + offset for unit in units for offset in range(k))


def _finite(value: Any, name: str) -> float:
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or not math.isfinite(value):
        raise SpecError(f"{name} must be a finite number; got {value!r}.")
    return float(value)
