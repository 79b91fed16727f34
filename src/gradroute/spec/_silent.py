"""Silent units: which units are off in the forward pass for the examples of a label, as a spec is given it."""

from __future__ import annotations

import numbers
from collections import Counter
from collections.abc import Collection, Hashable, Iterable, Mapping
from typing import Any, Literal, TypeAlias

from ..errors import SpecError, preview
from ._checks import UNTAUGHT, canonical_label
from ._masks import UNLABELED, unknown_label
from ._route import Route

Labels: TypeAlias = "tuple[Hashable, ...] | Literal['others']"
"""Several labels; or all but one, which is not written out: of 50,000 labels each would have 49,999 others."""

Silent: TypeAlias = "Mapping[Any, Any] | Literal['others'] | None"
"""Whose units are off for the examples of which label; see `gradroute.RoutingSpec`."""


class Teachers:
    """Which labels teach which units.

    A label teaches the units that its route names, if with a weight other than 0. What a route says of all units
    `elsewhere` makes none of them that label's.
    """

    def __init__(self, routes: Mapping[Hashable, Route], width: int, shared: Collection[int]) -> None:
        self._routes = routes
        self._width = width
        self._shared = frozenset(shared)
        self._counted: list[int] | None = None
        self._others: dict[Route | None, tuple[int, ...]] = {}  # of each route what others teach: many labels share one

    def _number(self) -> list[int]:
        """Of the labels that teach each unit. Counted when it is asked for, since there may be many."""
        if self._counted is None:
            self._counted = [0] * self._width
            for route, number in Counter(self._routes.values()).items():
                for unit in _taught_by(route):
                    self._counted[unit] += number
        return self._counted

    def exclusive(self, labels: Iterable[Hashable]) -> tuple[int, ...]:
        """The units that these labels teach and no other: in increasing order."""
        number = self._number()
        inside: dict[int, int] = {}
        for label in dict.fromkeys(labels):
            if label is UNTAUGHT:
                inside |= {unit: 0 for unit, n in enumerate(number) if n == 0}
                continue
            for unit in _taught_by(self._routes[label]):
                inside[unit] = inside.get(unit, 0) + 1
        return tuple(sorted(u for u, n in inside.items() if n == number[u] and u not in self._shared))

    def exclusive_to_others(self, label: Hashable) -> tuple[int, ...]:
        """The units that other labels teach and this one does not; for unlabeled data those that any label does."""
        route = None if label == UNLABELED else self._routes[label]
        if route not in self._others:
            own = self._shared.union(() if route is None else _taught_by(route))
            self._others[route] = tuple(u for u, n in enumerate(self._number()) if n > 0 and u not in own)
        return self._others[route]

    def off(self, label: Hashable, labels: Labels) -> tuple[int, ...]:
        """The units that are off for the examples of a label, given whose units these are."""
        return self.exclusive_to_others(label) if labels == "others" else self.exclusive(labels)


def _taught_by(route: Route) -> tuple[int, ...]:
    """The units of a route that was resolved, if it teaches them."""
    return route.index if route.weight != 0 else ()  # type: ignore[return-value]


def canonical_silent(silent: Silent, teachers: Teachers, known: Collection[Hashable]) -> dict[Hashable, Labels]:
    """For each label, in the order of the spec's and unlabeled data last, the labels whose units are off.

    Raises:
        SpecError: A label is unknown, or would silence itself; a rule switches nothing off; "others" is a label's name.
    """
    if silent is None:
        return {}
    if isinstance(silent, str):
        if silent != "others":
            raise SpecError(
                f"silent must be 'others', or a mapping such as {{'retain': 'forget'}}, which switches the units of "
                f"'forget' off for examples of 'retain'; got {silent!r}."
            )
        _refuse_a_label_of_that_name(known)
        if not any(teachers.exclusive_to_others(label) for label in known):
            raise SpecError("silent='others' would switch nothing off: all labels teach the same units.")
        return dict.fromkeys(known, "others")
    if not isinstance(silent, Mapping):
        raise SpecError(f"silent must be 'others' or a mapping from labels to labels; got {silent!r}.")
    given: dict[Hashable, Labels] = {}
    for name, value in silent.items():
        label = UNLABELED if isinstance(name, numbers.Integral) and name == UNLABELED else _label(name, known)
        given[label] = _labels(label, value, known)
        if not teachers.off(label, given[label]):
            raise SpecError(
                f"silent: for {label!r} nothing would be off: no unit is taught by {_shown(given[label])} alone."
            )
    return {label: given[label] for label in (*known, UNLABELED) if label in given}


def as_argument(silent: Mapping[Hashable, Labels], known: Collection[Hashable]) -> Silent:
    """The shortest argument that makes the same silent units; None where there are none."""
    if not silent:
        return None
    if "others" in known:  # which then says nothing

        def others(label: Hashable) -> list[Hashable]:
            return [other for other in known if other != label]

        return {label: others(label) if labels == "others" else list(labels) for label, labels in silent.items()}
    if UNLABELED not in silent and len(silent) == len(known) and all(labels == "others" for labels in silent.values()):
        return "others"
    return {label: labels if labels == "others" else list(labels) for label, labels in silent.items()}


def as_code(silent: Mapping[Hashable, Labels], known: Collection[Hashable]) -> str:
    """The argument as code, a label alone where it is the only one."""
    argument = as_argument(silent, known)
    if not isinstance(argument, Mapping):
        return repr(argument)

    def code(label: Hashable, labels: Any) -> str:
        if labels == "others" and len(known) == 2 and label != UNLABELED:
            labels = [other for other in known if other != label]
        alone = len(labels) == 1 and (isinstance(labels[0], str | int | float)) and labels[0] != "others"
        return repr(labels[0] if alone else labels)

    return "{" + ", ".join(f"{label!r}: {code(label, labels)}" for label, labels in argument.items()) + "}"


def _labels(label: Hashable, value: Any, known: Collection[Hashable]) -> Labels:
    """The labels that a value names, in the order of the spec's."""
    if isinstance(value, str) and value == "others":
        _refuse_a_label_of_that_name(known)
        return "others"
    if hasattr(value, "tolist"):  # numpy's arrays and scalars, tensors
        value = value.tolist()
    several = isinstance(value, Iterable) and not isinstance(value, str | bytes | Mapping)
    one = _is_label(value, known)
    if one and several and all(_is_label(item, known) for item in value):
        raise SpecError(f"silent: {value!r} is a label, and also holds labels: write [{value!r}] for the one.")
    named = {_label(item, known) for item in (value if several and not one else [value])}
    if label in named:
        raise SpecError(
            f"silent: the units of {label!r} cannot be off for its own examples, which would teach nothing then: name "
            "other labels."
        )
    found = tuple(other for other in known if other in named)
    return "others" if len(found) == len(known) - (label != UNLABELED) else found


def _label(name: Any, known: Collection[Hashable]) -> Hashable:
    if not _is_label(name, known):
        raise SpecError(f"silent: {unknown_label(name, tuple(known))}")
    return canonical_label(name)


def _is_label(name: Any, known: Collection[Hashable]) -> bool:
    try:
        return canonical_label(name) in known
    except (TypeError, SpecError):  # what cannot be hashed, and integers that no label may be
        return False


def _refuse_a_label_of_that_name(known: Collection[Hashable]) -> None:
    if "others" in known:
        raise SpecError(
            "silent: 'others' means all other labels, and is the name of a label, too: write ['others'] for that "
            "label, or list the labels that are meant."
        )


def _shown(labels: Labels) -> str:
    return "other labels" if labels == "others" else preview(labels) or "no label"
