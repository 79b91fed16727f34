"""A `RoutingSpec` as a dict that JSON can carry, and back."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any, cast

from ..errors import SpecError, preview
from ._checks import Unlabeled
from ._route import Route
from ._silent import Silent

_KEYS = {"routes", "width", "shared", "unlabeled"}
_OPTIONAL = {"silent"}  # there where something is


def to_dict(
    routes: Mapping[Hashable, Route], width: int, shared: tuple[int, ...], unlabeled: Unlabeled, silent: Silent
) -> dict[str, Any]:
    """The dict of `RoutingSpec.to_dict`.

    Raises:
        SpecError: A label is not a string, a number, a bool or None, which is all that JSON can carry.
    """
    for label in routes:
        if not (label is None or isinstance(label, str | int | float)):
            raise SpecError(
                f"label {label!r} is a {type(label).__name__}, which JSON cannot carry: "
                "name labels by strings or integers, or pickle the spec."
            )
    found = {
        "routes": [[label, _of_route(route)] for label, route in routes.items()],
        "width": width,
        "shared": list(shared),
        "unlabeled": _of_route(unlabeled) if isinstance(unlabeled, Route) else unlabeled,
    }
    if silent is not None:
        found["silent"] = [list(rule) for rule in silent.items()] if isinstance(silent, Mapping) else silent
    return found


def arguments_of(data: Any) -> dict[str, Any]:
    """The arguments of the `RoutingSpec` that such a dict is of.

    Raises:
        SpecError: It is not such a dict: a key is missing or unknown, or a route is none.
    """
    if not isinstance(data, Mapping) or set(data) - _OPTIONAL != _KEYS:
        given = preview(sorted(map(str, data))) if isinstance(data, Mapping) else repr(type(data).__name__)
        raise SpecError(f"not a dict that RoutingSpec.to_dict wrote: expected the keys {sorted(_KEYS)}; got {given}.")
    try:
        routes = {label: Route(**route) for label, route in data["routes"]}
        unlabeled = data["unlabeled"]
        if isinstance(unlabeled, Mapping):
            unlabeled = Route(**unlabeled)
        silent = data.get("silent")
        if silent is not None and not isinstance(silent, str):
            silent = dict(silent)
    except SpecError:
        raise
    except (TypeError, ValueError) as error:
        raise SpecError(
            "not a dict that RoutingSpec.to_dict wrote: its routes must be pairs of a label and a dict with the keys "
            f"'index', 'weight' and 'elsewhere', and what is silent pairs of labels ({error})."
        ) from None
    return {
        "routes": routes,
        "width": data["width"],
        "shared": data["shared"],
        "unlabeled": unlabeled,
        "silent": silent,
    }


def _of_route(route: Route) -> dict[str, Any]:
    return {"index": list(cast("tuple[int, ...]", route.index)), "weight": route.weight, "elsewhere": route.elsewhere}
