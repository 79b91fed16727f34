"""`find_writers`: which entries of parameters write some units of a site and no others, asked of gradients."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ... import _torch_private as private
from ...router._attachment import Labels, attachment_of
from ...unit_dims import spread
from ..harness._gradient_hooks import GradientHooks
from ..harness._runs import Runs
from ..harness._site_probes import Probes
from ._experiments import Entries, against_others, held_alone, module_of, noise
from ._smooth_activations import Softened
from ._weight_uses import WeightUses


@dataclass
class Writers:
    """What writes some units of a site.

    Attributes:
        entries: The entries of parameters that write them and no others.
        recurrent: The entries that in one of their uses write them and no others, and in another are a part of all
            units: those of a recurrent network, whose units at one step are made of all units at the step before.
    """

    entries: Entries = field(default_factory=dict)
    recurrent: Entries = field(default_factory=dict)


def find_writers(runs: Runs, labels: Labels, site: int, units: Tensor, parameters: dict[str, nn.Parameter]) -> Writers:
    """Find what writes these units of a site, bool [width], and no others.

    An entry is reached by units if its gradient depends on theirs. It is asked of a run that is unrouted, and without
    the user's gradient hooks: a hook that adds something to a gradient would make it look as if all units reached it.
    """
    attached = attachment_of(runs.router).sites[site]
    if not bool(units.any()) or (attached.routes_parameters and attached.site.on == "input"):
        return Writers()
    single = len(units) == 1
    prefix = f"{attached.name}." if attached.name and not single else ""
    routed = held_alone(attached, runs.router.model) if single else set(attached.own_parameters().values())
    own = {name: parameter for name, parameter in parameters.items() if name.startswith(prefix) and parameter in routed}
    if attached.routes_parameters and single:  # all of the module belongs to its one unit
        return Writers({name: torch.ones_like(parameter, dtype=torch.bool) for name, parameter in own.items()})
    among = own if attached.routes_parameters or single else parameters
    if not among:
        return Writers()
    found = Writers()
    uses = WeightUses(among)
    # The modes are on in backward, too, where checkpoints run again what was seen.
    with torch.enable_grad(), GradientHooks(runs.router.model, leave_out=True), Softened(), uses:
        # A graph of its own each time: the next forward pass writes to buffers that a BatchNorm's backward reads.
        _loss, graph = runs.whole(labels)
        search = _Search(runs, labels, site, graph, uses)
        for mine, others in against_others(units):
            search.add(found, mine, others)
    return found


class _Search:
    """Asks one graph for the gradients of parameters, and of each use of those that are used more than once."""

    def __init__(self, runs: Runs, labels: Labels, site: int, graph: Probes, uses: WeightUses) -> None:
        self._router = runs.router
        self._labels = labels
        self._dim = attachment_of(runs.router).sites[site].site.axis
        self._seen = [(item.edge, item.like) for item in graph.seen[site] if item.edge is not None]
        self._names = list(uses.parameters)
        self._inputs: list[Any] = list(uses.parameters.values())
        for name in uses.parameters:
            edges = uses.edges.get(name, [])
            if len(edges) > 1:
                self._names += [name] * len(edges)
                self._inputs += edges
        self._n_parameters = len(uses.parameters)

    def add(self, found: Writers, units: Tensor, others: Tensor) -> None:
        """Add what writes these units and not the others."""
        if not self._seen:
            return
        nothing = [torch.nan_to_num(g) if g is not None else None for g in self._gradients(None, 0)]
        mine = [_difference(*pair) for pair in zip(self._gradients(units, 0), nothing, strict=True)]
        # What rounding alone reaches belongs to nobody: a key's bias before a softmax, a bias before a BatchNorm. It is
        # told by its size, next to the rest of its module.
        largest: dict[str, float] = {}
        for name, gradient in zip(self._names, mine, strict=True):
            if gradient is not None and gradient.numel():
                module = module_of(name)
                largest[module] = max(largest.get(module, 0.0), float(gradient.abs().max()))
        reached = [
            None
            if gradient is None
            else gradient.abs() > torch.finfo(gradient.dtype).eps ** 0.5 * largest.get(module_of(name), 0.0)
            for name, gradient in zip(self._names, mine, strict=True)
        ]
        del mine
        by_others = [None if entries is None else torch.zeros_like(entries) for entries in reached]
        # Again and again, since what cancels but for rounding may give 0 by chance.
        for seed in range(3):
            theirs = (_difference(*pair) for pair in zip(self._gradients(others, seed), nothing, strict=True))
            for entries, gradient in zip(by_others, theirs, strict=True):
                if entries is not None and gradient is not None:
                    entries.logical_or_(gradient != 0)
        alone: Entries = {}
        mixed: Entries = {}
        for number, (name, a, b) in enumerate(zip(self._names, reached, by_others, strict=True)):
            if a is None or b is None:
                continue
            if number < self._n_parameters:
                _include(found.entries, name, a & ~b)
            else:
                _include(alone, name, a & ~b)
                _include(mixed, name, a & b)
        for name, entries in alone.items():
            _include(found.recurrent, name, entries & mixed.get(name, ~entries))

    def _gradients(self, units: Tensor | None, seed: int) -> list[Tensor | None]:
        """The gradients for a random gradient on some units of the site; for none at all."""
        # Positive, so that what many entries of the batch have in common does not cancel by chance.
        cotangents = [
            torch.zeros_like(like)
            if units is None
            else noise(like, seed).abs() * spread(units.to(like.device), like, self._dim)
            for _, like in self._seen
        ]
        edges = [edge for edge, _ in self._seen]
        with attachment_of(self._router).suspended(), self._router(self._labels):  # where checkpoints recompute
            found = private.gradients_under_modes(edges, self._inputs, cotangents)
        return [g.to_dense() if g is not None and g.is_sparse else g for g in found]


def _difference(gradient: Tensor | None, nothing: Tensor | None) -> Tensor | None:
    return gradient if gradient is None or nothing is None else gradient - nothing


def _include(found: Entries, name: str, entries: Tensor) -> None:
    if name in found:
        found[name] = found[name] | entries
    elif bool(entries.any()):
        found[name] = entries
