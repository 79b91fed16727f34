"""What a `RoutingSpec` is given, checked and brought into one form."""

from __future__ import annotations

import enum
import math
import numbers
from collections.abc import Hashable
from typing import Any, Final, Literal, TypeAlias, cast

from ..errors import SpecError
from ._masks import UNLABELED
from ._route import Route

MAX_INTEGER_KEY: Final = 10_000_000
"""Integer keys index a look-up table of this many entries at most (80 MB)."""


class _Untaught(enum.Enum):
    UNTAUGHT = "untaught"

    def __repr__(self) -> str:
        return "gradroute.UNTAUGHT"

    def __str__(self) -> str:
        return "untaught"  # in the names of metrics


UNTAUGHT: Final = _Untaught.UNTAUGHT
"""Stands among labels for no label: the units that no label's route names and that are not shared."""

Unlabeled: TypeAlias = "Literal['all', 'none', 'shared'] | Route"


def canonical_label(label: Hashable) -> Hashable:
    """The label itself; of an integer of another type, such as numpy's, a Python integer.

    Raises:
        SpecError: It is a negative or too large integer, NaN, or `UNTAUGHT`.
    """
    if label is UNTAUGHT:
        raise SpecError("gradroute.UNTAUGHT stands for the units that no label teaches, and cannot be a label.")
    if isinstance(label, numbers.Integral):
        label = int(label)
        if label < 0:
            raise SpecError(f"integer labels must be at least 0 ({UNLABELED} marks unlabeled data); got {label}.")
        if label > MAX_INTEGER_KEY:
            raise SpecError(
                f"integer label {label} is above {MAX_INTEGER_KEY}, the largest that a label tensor may hold: "
                "use string labels, and RoutingSpec.encode for their ids."
            )
    if isinstance(label, float) and math.isnan(label):
        raise SpecError("NaN cannot be a label: it equals nothing, not even itself.")
    return label


def canonical_unlabeled(unlabeled: Any, width: int) -> Unlabeled:
    """The rule for unlabeled data; of a `Route`, one whose index is a tuple of units.

    Raises:
        SpecError: It is no rule, or a route that does not fit the width.
    """
    if isinstance(unlabeled, Route):
        try:
            return unlabeled.resolved(width)
        except SpecError as error:
            raise SpecError(f"unlabeled: {error}") from None
    if unlabeled not in ("all", "none", "shared"):
        raise SpecError(f"unlabeled must be 'all', 'none', 'shared' or a Route; got {unlabeled!r}.")
    return cast("Unlabeled", unlabeled)


def positive_int(value: Any, name: str) -> int:
    """The value as a Python integer.

    Raises:
        SpecError: It is not an integer of at least 1; the message calls it by this name.
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < 1:
        raise SpecError(f"{name} must be an integer of at least 1; got {value!r}.")
    return int(value)
