"""The error tree. Every message says what was given, what was expected, and how to mend it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = [
    "LabelError",
    "LabelWarning",
    "LeakError",
    "NotRoutedError",
    "RoutingError",
    "SiteError",
    "SpecError",
    "UnroutedWarning",
    "UsageError",
]


class RoutingError(ValueError):
    """Base class of everything that gradroute raises about its own use."""


class SpecError(RoutingError):
    """A `Route` or `RoutingSpec` contradicts itself, such as an index outside the width."""


class LabelError(RoutingError):
    """Labels do not fit the spec or the tensor: their type, shape, dtype or values."""


class SiteError(RoutingError):
    """A site does not fit the model: no such module, no such tensor in its output, another width."""


class UsageError(RoutingError):
    """Something is used in a way that cannot work, such as a router in two threads at once, or after it was removed."""


class LeakError(RoutingError, AssertionError):
    """An audit found a label that trains what its route leaves out, or a watch a step that moved what nobody taught."""


class NotRoutedError(RoutingError, AssertionError):
    """The gradients of a routed model are not those of the oracle."""


class UnroutedWarning(UserWarning):
    """Gradients of a model with a router are not routed: there were no labels in training, or something goes around."""


class LabelWarning(UserWarning):
    """Labels fit, and probably do not mean what they were meant to: sets of labels that were given as floats."""


def missing_package(what: str, package: str, extra: str) -> str:
    """The message for an optional package that is missing: its own name, which works wherever gradroute came from.

    >>> missing_package("plots", "matplotlib", "plot")
    "plots need matplotlib: pip install matplotlib. (The extra 'plot' brings it: pip install '.[plot]' in a clone.)"
    """
    return (
        f"{what} need {package}: pip install {package}. (The extra {extra!r} brings it: pip install '.[{extra}]' in a "
        "clone.)"
    )


def preview(items: Iterable[object], limit: int = 8) -> str:
    """The first few items as text, and how many more there are: no message prints a whole tensor.

    >>> preview(range(3)), preview(range(100), limit=3)
    ('0, 1, 2', '0, 1, 2, ... (97 more)')
    """
    items = list(items)
    shown = ", ".join(repr(item) for item in items[:limit])
    return f"{shown}, ... ({len(items) - limit} more)" if len(items) > limit else shown


def did_you_mean(given: object, known: Iterable[object]) -> str:
    """A sentence naming the known names nearest to a mistyped one; the first few known names where none is near.

    >>> did_you_mean("retian", ["retain", "forget"])
    "Did you mean 'retain' or 'forget'?"
    """
    known = list(known)
    by_text = {str(name): name for name in known}
    near = difflib.get_close_matches(str(given), by_text, n=3, cutoff=0.5)
    if near:
        return f"Did you mean {' or '.join(repr(by_text[text]) for text in near)}?"
    return f"Known: {preview(known)}."
