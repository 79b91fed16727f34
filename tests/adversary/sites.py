"""Sites and labels that the machine draws, and the masks that they mean, written from the definition."""

from __future__ import annotations

import dataclasses
from typing import Any

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

    def site(self) -> gr.Site:
        routes = {i: gr.Route(list(r.index), r.weight, r.elsewhere) for i, r in enumerate(self.routes)}
        spec = gr.RoutingSpec(routes, WIDTH, unlabeled=self.unlabeled)
        path = self.slot.path if self.on == "output" else ()
        index = None if not path else path[0]
        return gr.Site(spec, on=self.on, level=self.level, dim=self.slot.dim, index=index)

    def place(self, labels: Tensor) -> Place:
        weights = self.weights(labels)
        dim = self.slot.dim

        def mask(x: Tensor) -> Tensor:
            if x.ndim == 2:
                return weights
            spread = weights if weights.ndim == 3 else weights[:, None]
            return spread.transpose(1, 2) if dim == 1 else spread

        path = self.slot.path if self.on == "output" else ()
        return Place(self.slot.name, mask, self.level, self.on, path)

    def weights(self, labels: Tensor) -> Tensor:
        """[B, D] or [B, T, D]: the weight of each unit for each example or position."""
        rows = [route.row() for route in self.routes]
        unknown = [1.0 if self.unlabeled == "all" else 0.0] * WIDTH
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


@st.composite
def sites(draw: Any, names: tuple[str, ...]) -> list[Drawn]:
    """One to three sites; at level "parameters" not two on one module, whose parameters both would mask."""
    found: list[Drawn] = []
    for slot in draw(st.lists(st.sampled_from(slots(names)), min_size=1, max_size=3, unique=True)):
        level = draw(st.sampled_from(["activations", "parameters"] if slot.own else ["activations"]))
        if any(other.slot.name == slot.name for other in found):
            continue
        routes = draw(st.lists(draw(st.sampled_from([hard, soft])), min_size=LABELS, max_size=LABELS))
        on = draw(st.sampled_from(slot.ends))
        found.append(Drawn(slot, tuple(routes), draw(st.sampled_from(["all", "none"])), level, on))
    return found


@st.composite
def labels(draw: Any, sites: list[Drawn]) -> Tensor:
    """Ids of examples, ids of positions where all sites know positions, multi-hot rows, or mixtures."""
    kinds = ["ids", "multi-hot", "mixture"]
    if all(site.slot.per_position for site in sites):
        kinds.append("positions")
    kind = draw(st.sampled_from(kinds))
    ids = st.integers(-1, LABELS - 1)
    if kind == "ids":
        return torch.tensor(draw(st.lists(ids, min_size=BATCH, max_size=BATCH)))
    if kind == "positions":
        some = draw(st.lists(ids, min_size=BATCH * TIME, max_size=BATCH * TIME))
        return torch.tensor(some).reshape(BATCH, TIME)
    if kind == "multi-hot":
        return torch.tensor(
            draw(st.lists(st.lists(st.booleans(), min_size=LABELS, max_size=LABELS), min_size=BATCH, max_size=BATCH))
        )
    shares = st.lists(st.sampled_from([0.0, 0.25, 1.0]), min_size=LABELS, max_size=LABELS)
    return torch.tensor(draw(st.lists(shares, min_size=BATCH, max_size=BATCH)))
