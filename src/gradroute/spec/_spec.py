"""`RoutingSpec`: which units each label may teach. Pure data; no model, no autograd."""

from __future__ import annotations

import numbers
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, cast

import torch
from torch import Tensor

from ..errors import SpecError
from ._checks import UNTAUGHT, Unlabeled, canonical_label, canonical_unlabeled, positive_int
from ._dict_form import arguments_of, to_dict
from ._masks import UNLABELED, MaskTable, unknown_label
from ._route import Index, Route, canonical_index, repeated, shown, units_of
from ._silent import Labels, Silent, Teachers, as_argument, as_code, canonical_silent


@dataclass(frozen=True, init=False, repr=False)
class RoutingSpec:
    """The frozen map from labels to routes, over the `width` units of one dimension.

    Args:
        routes: From each label to its `Route`, or to an index, which stands for a `Route` of weight 1. The order of
            the labels is that of their ids and of the columns of multi-hot and mixture labels.
        width: The number of units: the size of the routed dimension.
        shared: Units that every label may teach, with weight 1 unless the label's own route names them too.
        unlabeled: What unlabeled data may teach: ``"all"`` units, ``"none"``, the ``"shared"`` ones only, or a
            `Route` (which teaches the shared units too, as a label does).
        silent: Whose units are off, in the forward pass too, for the examples of a label: a mapping from labels to a
            label, several labels, or ``"others"``, which are all labels but that one. ``{"retain": "forget"}``: for
            examples of "retain" the units that "forget" alone teaches (``exclusive("forget")``) are exactly 0, and so
            is their gradient. `UNLABELED` may be a key, too. ``"others"`` in place of a mapping says it of every label
            (and nothing of unlabeled data).

    Raises:
        SpecError: No label, a negative integer as a label, a width below 1, an index outside the width; a label in
            `silent` that the spec does not have, or that would silence itself, or a rule that switches nothing off.

    Examples:
        >>> spec = RoutingSpec({"retain": slice(0, 3), "forget": 3}, 5, shared=4)
        >>> spec.labels, spec.width, spec.indices("forget")
        (('retain', 'forget'), 5, (3,))
        >>> spec.table
        tensor([[1., 1., 1., 0., 1.],
                [0., 0., 0., 1., 1.],
                [1., 1., 1., 1., 1.]])
        >>> spec.mask(spec.encode(["forget", UNLABELED]))
        tensor([[0., 0., 0., 1., 1.],
                [1., 1., 1., 1., 1.]])
        >>> spec = RoutingSpec({"retain": 0, "forget": 1}, 3, shared=2, silent={"retain": "forget"})
        >>> spec.silent_mask(spec.encode(["retain", "forget"]))
        tensor([[False,  True, False],
                [False, False, False]])

    References:
        Cloud et al., "Gradient Routing: Masking Gradients to Localize Computation in Neural Networks", 2024
        (arXiv:2410.04332).
    """

    routes: Mapping[Hashable, Route]
    width: int
    shared: tuple[int, ...]
    unlabeled: Unlabeled
    silent: Mapping[Hashable, Labels]
    # What the rest of the library reads; made from the fields above.
    masks: MaskTable = field(compare=False, repr=False)
    _routes: dict[Hashable, Route] = field(compare=False, repr=False)
    _teachers: Teachers = field(compare=False, repr=False)

    def __init__(
        self,
        routes: Mapping[Any, Route | Index],
        width: int,
        *,
        shared: Index = (),
        unlabeled: Unlabeled = "all",
        silent: Silent = None,
    ) -> None:
        width = positive_int(width, "width")
        if not isinstance(routes, Mapping):
            raise SpecError(f"routes must be a mapping from labels to routes, such as {{0: 0, 1: 1}}; got {routes!r}.")
        if not routes:
            raise SpecError("routes is empty: a spec needs at least one label, such as RoutingSpec({0: 0}, 10).")
        resolved: dict[Hashable, Route] = {}
        known: dict[int, tuple[Any, Route]] = {}  # many labels, such as tokens, may be given one and the same route
        for label, value in routes.items():
            key = canonical_label(label)
            try:
                if id(value) not in known:
                    known[id(value)] = value, (value if isinstance(value, Route) else Route(value)).resolved(width)
            except SpecError as error:
                raise SpecError(f"route of label {label!r}: {error}") from None
            resolved[key] = known[id(value)][1]
        try:
            shared_units = units_of(canonical_index(shared), width)
        except SpecError as error:
            raise SpecError(f"shared: {error}") from None
        set_field = object.__setattr__
        set_field(self, "routes", MappingProxyType(resolved))
        # The dict itself, since Dynamo reads no mapping proxy after any dict was written to, as a block of labels does.
        set_field(self, "_routes", resolved)
        set_field(self, "width", width)
        set_field(self, "shared", shared_units)
        set_field(self, "unlabeled", canonical_unlabeled(unlabeled, width))
        set_field(self, "_teachers", Teachers(resolved, width, shared_units))
        set_field(self, "silent", MappingProxyType(canonical_silent(silent, self._teachers, resolved)))
        # Built now, not at first use, since first use may be inside a function that torch.compile traces.
        set_field(self, "masks", self._build_masks())

    # ------------------------------------------------------------------ constructors

    @classmethod
    def one_per_label(cls, n: int, *, unlabeled: Unlabeled = "all", silent: Silent = None) -> RoutingSpec:
        """Labels 0 to n - 1 over n units: label i may teach unit i, and no other.

        Raises:
            SpecError: n is not an integer of at least 1, or `silent` does not fit.

        Examples:
            >>> RoutingSpec.one_per_label(3).table
            tensor([[1., 0., 0.],
                    [0., 1., 0.],
                    [0., 0., 1.],
                    [1., 1., 1.]])
        """
        n = positive_int(n, "n")
        return cls({label: label for label in range(n)}, n, unlabeled=unlabeled, silent=silent)

    @classmethod
    def split(
        cls, sizes: Mapping[Any, int], *, shared: int = 0, unlabeled: Unlabeled = "all", silent: Silent = None
    ) -> RoutingSpec:
        """Consecutive blocks of units, one a label, of the given sizes; a block of `shared` units comes last.

        Raises:
            SpecError: `sizes` is no mapping, a size is negative or not an integer, or there is no unit at all; or
                `silent` does not fit.

        Examples:
            >>> RoutingSpec.split({"retain": 30, "forget": 2}, shared=4)
            RoutingSpec({'retain': slice(0, 30), 'forget': slice(30, 32)}, 36, shared=slice(32, 36))
        """
        if not isinstance(sizes, Mapping):
            raise SpecError(
                "sizes must be a mapping from labels to numbers of units, such as {'retain': 30, 'forget': 2}; "
                f"got {sizes!r}."
            )
        blocks: list[slice] = []
        start = 0
        for name, size in [*sizes.items(), ("shared", shared)]:
            if isinstance(size, bool) or not isinstance(size, numbers.Integral) or size < 0:
                raise SpecError(f"the size of block {name!r} must be an integer of at least 0; got {size!r}.")
            blocks.append(slice(start, start + int(size)))
            start += int(size)
        routes = dict(zip(sizes, blocks, strict=False))
        return cls(routes, start, shared=blocks[-1], unlabeled=unlabeled, silent=silent)

    def repeat(self, k: int) -> RoutingSpec:
        """A spec over width * k units, with k consecutive units for each unit of this one.

        So a spec over attention heads becomes one over the features of the heads.

        Raises:
            SpecError: k is not an integer of at least 1.

        Examples:
            >>> RoutingSpec({"a": 0, "b": 1}, 2).repeat(3)
            RoutingSpec({'a': slice(0, 3), 'b': slice(3, 6)}, 6)
        """
        k = positive_int(k, "k")
        unlabeled = self.unlabeled.repeat(k, self.width) if isinstance(self.unlabeled, Route) else self.unlabeled
        routes = {label: route.repeat(k, self.width) for label, route in self.routes.items()}
        return RoutingSpec(
            routes,
            self.width * k,
            shared=repeated(self.shared, k),
            unlabeled=unlabeled,
            silent=self.silent_argument,
        )

    # ------------------------------------------------------------------ what it says

    @property
    def labels(self) -> tuple[Hashable, ...]:
        """The labels, in the order of their ids."""
        return tuple(self._routes)

    def indices(self, label: Hashable) -> tuple[int, ...]:
        """The units of the label's own route, in increasing order; the shared units are in `shared`.

        Raises:
            SpecError: The spec has no such label.
        """
        return self._route(label).index  # type: ignore[return-value]  # routes are resolved to tuples of units

    def exclusive(self, *labels: Hashable) -> tuple[int, ...]:
        """The units that these labels may teach, and no other label: ablating the labels switches these units off.

        It is the units that a route names that count: a route of weight 0 teaches none, and what a route has
        `elsewhere`, on all other units, makes none of them that label's. `gradroute.UNTAUGHT` stands for no label: the
        units that no route names and that are not shared.

        Examples:
            >>> spec = RoutingSpec({"a": [0, 1], "b": Route([1, 2], elsewhere=-0.5)}, 5, shared=3)
            >>> spec.exclusive("a"), spec.exclusive("a", "b"), spec.exclusive(UNTAUGHT)
            ((0,), (0, 1, 2), (4,))

        Raises:
            SpecError: The spec has no such label.
        """
        for label in labels:
            if label is not UNTAUGHT:
                self._route(label)
        return self._teachers.exclusive(labels)

    def encode(self, names: Sequence[Any] | Tensor) -> Tensor:
        """Label names to the int64 tensor that `mask` and `route` take.

        Args:
            names: Labels, or nested lists of labels (for labels per token). `UNLABELED` (-1) stands for unknown ones.

        Returns:
            int64 tensor of the shape of `names`: the keys themselves where all of the spec's keys are integers, and
            the position of each name in `labels` where not; -1 for unlabeled.

        Raises:
            SpecError: A name that is no label of the spec.

        Examples:
            >>> spec = RoutingSpec.split({"retain": 30, "forget": 2})
            >>> spec.encode(["forget", UNLABELED, "retain"])
            tensor([ 1, -1,  0])
            >>> spec.encode([["forget"], ["retain"]])
            tensor([[1],
                    [0]])
        """
        if isinstance(names, str | bytes):
            raise SpecError(f"names must be a sequence of labels; got the single string {names!r}: write [{names!r}].")
        if hasattr(names, "tolist"):
            names = names.tolist()
        if not isinstance(names, Iterable):
            raise SpecError(f"names must be a sequence of labels; got {names!r}: write [{names!r}].")
        ids = {UNLABELED: UNLABELED} | {
            label: cast("int", label) if self.integer_keys else position for position, label in enumerate(self.labels)
        }

        def encode_one(name: Any) -> Any:
            if isinstance(name, list):
                return [encode_one(inner) for inner in name]
            try:
                return ids[name]
            except (KeyError, TypeError):
                raise SpecError(unknown_label(name, self.labels)) from None

        return torch.tensor([encode_one(name) for name in names], dtype=torch.int64)

    @property
    def table(self) -> Tensor:
        """The mask of each label: float32 [n_labels + 1, width]; the last row is that of unlabeled data.

        A new tensor at each call, so that writing to it cannot change the spec.
        """
        return self.masks.dense()

    def mask(self, labels: Tensor) -> Tensor:
        """The weights by which the gradient of a batch is multiplied.

        Args:
            labels: Integer, bool (multi-hot) or floating (mixture) labels; see `gradroute.route`.

        Returns:
            float32 tensor of shape ``labels.shape + (width,)`` for integer labels, and
            ``labels.shape[:-1] + (width,)`` for bool and floating ones.

        Raises:
            LabelError: The labels do not fit the spec.

        Examples:
            >>> spec = RoutingSpec.one_per_label(3)
            >>> spec.mask(torch.tensor([2, UNLABELED]))
            tensor([[0., 0., 1.],
                    [1., 1., 1.]])
            >>> spec.mask(torch.tensor([[True, True, False]]))
            tensor([[1., 1., 0.]])
            >>> spec.mask(torch.tensor([[0.5, 0.5, 0.0]]))
            tensor([[0.5000, 0.5000, 0.0000]])
        """
        mask = self.masks.resolve(labels)
        return mask.tensor(torch.float32, mask.labels.device)

    def silent_mask(self, labels: Tensor) -> Tensor:
        """Which units are off for a batch, in the forward pass and in the backward pass.

        A unit is on if one of an example's labels has it on: of a set, one that is set; of a mixture, one whose weight
        is not 0. An example without any is unlabeled. What is off is not taught: there `mask` is 0.

        Args:
            labels: Integer, bool (multi-hot) or floating (mixture) labels; see `gradroute.route`.

        Returns:
            bool tensor of the shape of `mask`'s, True where a unit is off; all False where the spec has no silent
            units.

        Raises:
            LabelError: The labels do not fit the spec.

        Examples:
            >>> spec = RoutingSpec.one_per_label(3, silent="others")
            >>> spec.silent_mask(torch.tensor([2, UNLABELED]))
            tensor([[ True,  True, False],
                    [False, False, False]])
            >>> spec.silent_mask(torch.tensor([[True, True, False]]))
            tensor([[False, False,  True]])
        """
        mask = self.masks.resolve(labels)
        if not mask.silences:
            return torch.zeros(*mask.shape, self.width, dtype=torch.bool, device=mask.labels.device)
        return mask.off(mask.labels.device)

    # ------------------------------------------------------------------ exchange

    def to_dict(self) -> dict[str, Any]:
        """A JSON-safe dict from which `from_dict` makes an equal spec.

        Raises:
            SpecError: A label is not a string, a number, a bool or None, which is all that JSON can carry.

        Examples:
            >>> RoutingSpec.from_dict(RoutingSpec.one_per_label(2).to_dict()) == RoutingSpec.one_per_label(2)
            True
        """
        return to_dict(self.routes, self.width, self.shared, self.unlabeled, self.silent_argument)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> RoutingSpec:
        """The spec that `to_dict` wrote.

        Raises:
            SpecError: It is not such a dict: a key is missing or unknown, or a route is none.
        """
        return cls(**arguments_of(data))

    def __repr__(self) -> str:
        suffix = f", unlabeled={self.unlabeled!r}" if self.unlabeled != "all" else ""
        if self.silent:
            suffix += f", silent={as_code(self.silent, self._routes)}"
        n = len(self.routes)
        diagonal = all(label == i and route == Route((i,)) for i, (label, route) in enumerate(self.routes.items()))
        if diagonal and n == self.width and not self.shared:
            return f"RoutingSpec.one_per_label({n}{suffix})"
        routes = ", ".join(
            f"{label!r}: {shown(route.index) if route == Route(route.index) else repr(route)}"
            for label, route in self.routes.items()
        )
        shared = f", shared={shown(self.shared)}" if self.shared else ""
        return f"RoutingSpec({{{routes}}}, {self.width}{shared}{suffix})"

    def __reduce__(self) -> tuple[Any, ...]:
        return (_rebuild, (dict(self.routes), self.width, self.shared, self.unlabeled, self.silent_argument))

    def __deepcopy__(self, memo: dict[int, Any]) -> RoutingSpec:
        return self  # frozen: a copy could never differ

    # ------------------------------------------------------------------ for the rest of the library

    @property
    def integer_keys(self) -> bool:
        """Whether label tensors hold the spec's own keys (all keys are integers) or positions in `labels`."""
        return all(isinstance(label, int) for label in self.labels)

    @property
    def has_silent(self) -> bool:
        """Whether some units are off for some examples, so that the forward pass depends on labels."""
        return self.masks.off is not None

    @property
    def silent_argument(self) -> Silent:
        """What makes the same silent units of a spec with the same labels."""
        return as_argument(self.silent, self._routes)

    def _build_masks(self) -> MaskTable:
        rules = [*self._routes.items(), (UNLABELED, self.unlabeled)]
        kinds: dict[tuple[Unlabeled, tuple[int, ...]], int] = {}  # of rules and units that are off, to their row
        row_of_label = []
        for label, rule in rules:
            off = self._teachers.off(label, self.silent[label]) if label in self.silent else ()
            row_of_label.append(kinds.setdefault((rule, off), len(kinds)))
        rows = torch.zeros(len(kinds), self.width, device="cpu")
        silent = torch.zeros(len(kinds), self.width, dtype=torch.bool, device="cpu")
        shared = torch.tensor(self.shared, dtype=torch.int64, device="cpu")
        for row, silent_row, (rule, off) in zip(rows, silent, kinds, strict=True):
            if isinstance(rule, Route):
                row.fill_(rule.elsewhere)
                row[shared] = 1.0
                row[torch.tensor(rule.index, dtype=torch.int64, device="cpu")] = rule.weight
            elif rule == "all":
                row.fill_(1.0)
            elif rule == "shared":
                row[shared] = 1.0
            silent_row[torch.tensor(off, dtype=torch.int64, device="cpu")] = True
        rows[silent] = 0.0  # what is off is not taught
        return MaskTable(
            rows,
            torch.tensor(row_of_label, device="cpu"),
            self.labels,
            integer_keys=self.integer_keys,
            off=silent if self.silent else None,
        )

    def _route(self, label: Hashable) -> Route:
        try:
            return self._routes[label]
        except (KeyError, TypeError):
            raise SpecError(unknown_label(label, self.labels)) from None

    def __hash__(self) -> int:
        return hash((tuple(self.routes.items()), self.width, self.shared, self.unlabeled, tuple(self.silent.items())))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, RoutingSpec):
            return NotImplemented
        # The order of the labels is that of their ids, so it is part of the value.
        return (
            self.width == other.width
            and self.shared == other.shared
            and self.unlabeled == other.unlabeled
            and self.silent == other.silent
            and list(self.routes.items()) == list(other.routes.items())
        )


def _rebuild(  # as `__reduce__` hands them on
    routes: dict[Any, Route], width: int, shared: tuple[int, ...], unlabeled: Unlabeled, silent: Silent = None
) -> RoutingSpec:
    return RoutingSpec(routes, width, shared=shared, unlabeled=unlabeled, silent=silent)
