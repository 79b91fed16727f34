"""Sites and labels that the machine draws, and the masks that they mean, written from the definition."""

from __future__ import annotations

import dataclasses
from functools import cache
from typing import Any, TypeAlias

import torch
from hypothesis import strategies as st
from torch import Tensor

import gradroute as gr
from adversary.models import BATCH, TIME, WIDTH, Slot, slots
from adversary.oracle import Place

LABELS = 3


@dataclasses.dataclass(frozen=True)
class Route:
    """What a label may teach: the units of `index` with `weight`, and all others with `elsewhere`."""

    index: tuple[int, ...]
    weight: float
    elsewhere: float

    def row(self) -> list[float]:
        return [self.weight if unit in self.index else self.elsewhere for unit in range(WIDTH)]


@dataclasses.dataclass(frozen=True)
class Drawn:
    """A site as data: both a `gradroute.Site` and a place of the oracle are made of it."""

    slot: Slot
    routes: tuple[Route, ...]
    unlabeled: str
    level: str
    on: str
    silent: tuple[frozenset[int], ...] = (frozenset(),) * (LABELS + 1)  # for each label, and unlabeled data last

    def site(self) -> gr.Site:
        routes = {i: gr.Route(list(r.index), r.weight, r.elsewhere) for i, r in enumerate(self.routes)}
        silent = {key: sorted(self.silent[key]) for key in (*range(LABELS), -1) if self.off_for(key)}
        spec = gr.RoutingSpec(routes, WIDTH, unlabeled=self.unlabeled, silent=silent)
        path = self.slot.path if self.on == "output" else ()
        index = None if not path else path[0]
        return gr.Site(spec, on=self.on, level=self.level, dim=self.slot.dim, index=index)

    def place(self, labels: Tensor | None, ablated: frozenset[int] = frozenset()) -> Place:
        weights = self.weights(labels)
        dim = self.slot.dim

        def spread(weights: Tensor, x: Tensor) -> Tensor:
            if x.ndim == 2:
                return weights
            per_position = weights if weights.ndim == 3 else weights[:, None]
            return per_position.transpose(1, 2) if dim == 1 else per_position

        off = self.units_of(ablated) - self.units_of(frozenset(range(LABELS)) - ablated)
        on_units = torch.tensor([[unit not in off for unit in range(WIDTH)]])
        if labels is not None:
            on_units = on_units & ~self.off(labels)
        path = self.slot.path if self.on == "output" else ()
        return Place(
            *(self.slot.name, lambda x: spread(weights, x), self.level, self.on, path),
            on_units=None if bool(on_units.all()) else lambda x: spread(on_units, x),
        )

    def off_for(self, label: int) -> set[int]:
        """The units that are off for the examples of a label: those that the labels it silences teach alone."""
        silenced = self.silent[label]
        return self.units_of(silenced) - self.units_of(frozenset(range(LABELS)) - silenced)

    def off(self, labels: Tensor) -> Tensor:
        """[B, D] or [B, T, D]: which units all labels of an example or position have off."""
        if labels.dtype == torch.bool or labels.is_floating_point():
            several = [[i for i in range(LABELS) if row[i]] or [-1] for row in labels.tolist()]
            rows = [[all(u in self.off_for(i) for i in some) for u in range(WIDTH)] for some in several]
            return torch.tensor(rows)
        rows = [[u in self.off_for(i) for u in range(WIDTH)] for i in labels.flatten().tolist()]
        return torch.tensor(rows).reshape(*labels.shape, WIDTH)

    def units_of(self, labels: frozenset[int]) -> set[int]:
        """The units that belong to these labels: those of their routes, unless a route has no weight."""
        return {unit for label in labels if self.routes[label].weight for unit in self.routes[label].index}

    def weights(self, labels: Tensor | None) -> Tensor:
        """[B, D] or [B, T, D]: the weight of each unit for each example or position; 1 without labels."""
        if labels is None:
            return torch.ones(BATCH, WIDTH)
        rows = [[0.0 if u in self.off_for(i) else w for u, w in enumerate(r.row())] for i, r in enumerate(self.routes)]
        unknown = [1.0 if self.unlabeled == "all" and u not in self.off_for(-1) else 0.0 for u in range(WIDTH)]
        if labels.dtype == torch.bool:
            return torch.tensor(
                [union([rows[i] for i in range(LABELS) if some[i]], unknown) for some in labels.tolist()]
            )
        if labels.is_floating_point():
            return torch.tensor(
                [[sum(share[i] * rows[i][u] for i in range(LABELS)) for u in range(WIDTH)] for share in labels.tolist()]
            )
        flat = [unknown if label == gr.UNLABELED else rows[label] for label in labels.flatten().tolist()]
        return torch.tensor(flat).reshape(*labels.shape, WIDTH)


def union(rows: list[list[float]], unknown: list[float]) -> list[float]:
    """Per unit the weight of the largest magnitude, the positive one of two equal ones."""
    if not rows:
        return unknown
    return [max((row[u] for row in rows), key=lambda weight: (abs(weight), weight)) for u in range(WIDTH)]


indices = st.sets(st.integers(0, WIDTH - 1), min_size=1).map(lambda units: tuple(sorted(units)))
hard = st.builds(Route, indices, st.just(1.0), st.just(0.0))
soft = st.builds(Route, indices, st.sampled_from([1.0, 0.5, -1.0]), st.sampled_from([0.0, 0.25]))


NOTHING = (frozenset(),) * (LABELS + 1)
silences = st.integers(0, 2**9 - 1).map(lambda seed: _silence(seed))  # noqa: PLW0108  # is below


def _silence(seed: int) -> tuple[frozenset[int], ...]:
    numbers = torch.Generator().manual_seed(seed)
    chosen = (torch.rand(LABELS + 1, LABELS, generator=numbers) < 0.4).tolist()
    return tuple(frozenset(j for j in range(LABELS) if row[j] and j != i) for i, row in enumerate(chosen))


# Strategies are made once: to make one takes longer than to draw from it.
three_routes = st.sampled_from([st.lists(kind, min_size=LABELS, max_size=LABELS) for kind in (hard, soft)])
rules = st.sampled_from(["all", "none"])
some_silences = st.one_of(st.just(NOTHING), silences)
one_of = cache(st.sampled_from)


@cache
def some_slots(names: tuple[str, ...]) -> st.SearchStrategy[list[Slot]]:
    return st.lists(st.sampled_from(slots(names)), min_size=1, max_size=3)


@st.composite
def sites(draw: Any, names: tuple[str, ...]) -> list[Drawn]:
    """One to three sites; at level "parameters" not two on one module, whose parameters both would mask."""
    found: list[Drawn] = []
    for slot in draw(some_slots(names)):
        level = draw(one_of(("activations", "parameters") if slot.own else ("activations",)))
        on = draw(one_of(slot.ends))
        there = [other for other in found if other.slot.name == slot.name]
        if any((other.on, other.slot.path) == (on, slot.path) for other in there):
            continue
        if any(other.level == "parameters" for other in there):
            level = "activations"
        routes = draw(draw(three_routes))
        unlabeled = draw(rules)
        # What is silent is a new tensor, so that nothing that is done in place reaches what came in.
        in_place = names[int(slot.name.split(".")[0])] in ("AliasInPlace", "View")
        silent = NOTHING if in_place else draw(some_silences)
        found.append(Drawn(slot, tuple(routes), unlabeled, level, on, silent))
    return found


SEEDS = st.integers(0, 2**10 - 1)
IDS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
Labels: TypeAlias = "Tensor | dict[str, Tensor]"


def labels(sites: list[Drawn]) -> st.SearchStrategy[Labels]:
    """One tensor for all sites, or one for each pattern."""
    return _labels(tuple({site.slot.name: site.slot.per_position for site in sites}.items()))


@cache
def _labels(of_patterns: tuple[tuple[str, bool], ...]) -> st.SearchStrategy[Labels]:
    patterns = dict(of_patterns)
    one = _tensors(all(patterns.values()))
    return st.one_of(one, one, st.fixed_dictionaries({name: _tensors(every) for name, every in patterns.items()}))


def by_pattern(given: Labels, sites: list[Drawn]) -> dict[str, Tensor]:
    """What the labels hold now, for each pattern."""
    names = {site.slot.name for site in sites}
    return {name: (given[name] if isinstance(given, dict) else given).clone() for name in names}


@cache
def _tensors(per_position: bool) -> st.SearchStrategy[Tensor]:
    """Ids of examples, ids of positions where all sites know positions, multi-hot rows, or mixtures."""
    kinds = [*IDS, torch.int64, torch.bool, torch.float32]
    # A seed, and not a list: hypothesis has so many bytes for a life, and they are for what happens in it.
    return st.builds(_tensor, st.sampled_from(kinds), st.booleans() if per_position else st.just(False), SEEDS)


def _tensor(dtype: torch.dtype, positions: bool, seed: int) -> Tensor:
    numbers = torch.Generator().manual_seed(seed)
    if dtype == torch.bool:
        return torch.rand(BATCH, LABELS, generator=numbers) < 0.4
    if dtype == torch.float32:
        return torch.tensor([0.0, 0.25, 0.75])[torch.randint(3, (BATCH, LABELS), generator=numbers)]
    lowest = 0 if dtype == torch.uint8 else -1
    return torch.randint(lowest, LABELS, (BATCH, TIME) if positions else (BATCH,), generator=numbers).to(dtype)
