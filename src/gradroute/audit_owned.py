"""Which entries of a model's parameters belong to units: what makes these and no others, and what reads no others."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from .audit_nudges import Nudges, along, noise
from .audit_probes import Probes, Runs
from .audit_state import trainable, unrouted
from .router import Labels, Router, _SiteHook

_SEEDS = (0, 1, 2)


@dataclass
class Owned:
    """What belongs to the units of one site that are off.

    Attributes:
        writers: For each parameter the entries without which only these units would change, bool.
        readers: For each parameter the entries that read these units and nothing else, bool.
        biases: The biases that are added to what the readers read.
    """

    writers: dict[str, Tensor] = field(default_factory=dict)
    readers: dict[str, Tensor] = field(default_factory=dict)
    biases: set[str] = field(default_factory=set)


class Ownership:
    """Finds by experiment, on the whole batch and unrouted, what belongs to units.

    *Writers.* The units are asked backwards: which entries does a random gradient on these units reach, and on the
    others does not? Exact: what it does not reach gets a gradient of exactly 0.

    *Readers.* The units are asked forwards: they are nudged, and what changes read them; see `Nudges`.

    Where a label may teach no unit of a site there are no others to compare with; there the units are taken in two
    halves, and what belongs to both halves alike is not theirs but the model's. Of a single unit, only what the site's
    own module holds is looked at.
    """

    def __init__(self, runs: Runs, labels: Labels) -> None:
        self._runs = runs
        self._router: Router = runs.router
        self._labels = labels
        self._parameters = trainable(self._router.model)
        self._found: dict[tuple[int, tuple[bool, ...]], Owned] = {}
        self._written: dict[tuple[int, str], Tensor] = {}
        self._nudges = Nudges(runs, labels)

    @property
    def repeatable(self) -> bool:
        """Whether two runs of the step do the same. If not, no reader is found."""
        return self._nudges.repeatable

    def of(self, site: int, taught: Tensor) -> Owned:
        """What belongs to the units of one site that are not taught, bool [width]; each question is asked once."""
        taught = taught.cpu()
        key = site, tuple(taught.tolist())
        if key not in self._found:
            hook = self._router._hooks[site]
            if bool(taught.all()):
                owned = Owned()
            elif _as_a_whole(hook):
                own = self._own(_prefix(hook))
                owned = Owned({name: torch.ones_like(parameter, dtype=torch.bool) for name, parameter in own.items()})
            elif len(taught) == 1:
                owned = Owned()
                self._find_writers(site, ~taught, taught, owned, self._own(_prefix(hook)))
            elif bool(taught.any()):
                owned = self._owned(site, ~taught, taught)
            else:
                half = torch.arange(len(taught)) < len(taught) // 2
                owned = _merged(self._owned(site, half, ~half), self._owned(site, ~half, half))
            self._found[key] = owned
        return self._found[key]

    def written(self, site: int, parameter: str) -> Tensor:
        """Which entries of a parameter belong to some of a site's units, and not to all of them alike; bool."""
        key = site, parameter
        if key not in self._written:
            width = self._router._hooks[site].site.spec.width
            half = torch.arange(width, device="cpu") < width // 2
            owned = Owned()
            self._find_writers(site, half, ~half, owned)
            first = owned.writers
            owned = Owned()
            self._find_writers(site, ~half, half, owned)
            empty = torch.zeros_like(self._parameters[parameter], dtype=torch.bool)
            self._written[key] = first.get(parameter, empty) | owned.writers.get(parameter, empty)
        return self._written[key]

    def _own(self, prefix: str) -> dict[str, Tensor]:
        """The parameters of a module, by their names in the model."""
        return {name: parameter for name, parameter in self._parameters.items() if name.startswith(prefix)}

    def _owned(self, site: int, units: Tensor, others: Tensor) -> Owned:
        owned = Owned()
        self._find_writers(site, units, others, owned)
        owned.readers, owned.biases = self._nudges.readers(site, units, others)
        return owned

    # ------------------------------------------------------------------ writers

    def _find_writers(
        self, site: int, units: Tensor, others: Tensor, owned: Owned, among: dict[str, Tensor] | None = None
    ) -> None:
        hook = self._router._hooks[site]
        if hook.site.level == "parameters" and hook.site.on == "input":
            return  # a site on what reads
        among = among if among is not None else {**self._parameters}
        parameters = self._own(_prefix(hook)) if hook.routes_parameters else among
        if not parameters:
            return
        # A graph of their own: the next forward pass writes to buffers that a BatchNorm's backward pass reads.
        with torch.enable_grad():
            _loss, graph = self._runs.whole(self._labels)
        wanted = list(parameters.values())
        theirs = self._reached(graph, site, units, wanted)
        # Again and again, since what cancels but for rounding may give 0 by chance.
        not_theirs = [self._reached(graph, site, others, wanted, seed) for seed in _SEEDS]
        largest: dict[str, float] = {}
        for name, mine in zip(parameters, theirs, strict=True):
            if mine is not None and mine.numel():
                largest[_module_of(name)] = max(largest.get(_module_of(name), 0.0), float(mine.abs().max()))
        for name, mine, *draws in zip(parameters, theirs, *not_theirs, strict=True):
            if mine is not None:
                # What rounding alone reaches belongs to nobody: a key's bias before a softmax, a bias before a
                # BatchNorm. It is told by its size, next to the rest of its module.
                entries = mine.abs() > torch.finfo(mine.dtype).eps ** 0.5 * largest.get(_module_of(name), 0.0)
                for other in draws:
                    entries &= True if other is None else other == 0
                if bool(entries.any()):
                    owned.writers[name] = entries

    def _reached(
        self, graph: Probes, site: int, units: Tensor, parameters: list[Tensor], seed: int = 0
    ) -> list[Tensor | None]:
        """The gradient of the parameters for random gradients on some units of a site."""
        hook = self._router._hooks[site]
        seen = [item for item in graph.seen[site] if item.edge is not None]
        if not seen:
            return [None] * len(parameters)
        # Positive, so that what many entries of the batch have in common does not cancel by chance.
        cotangents = [noise(item.like, seed, positive=True) * along(units, item.like, hook) for item in seen]
        with unrouted(self._router), self._router(self._labels):  # where checkpoints recompute
            found = torch.autograd.grad(
                [item.edge for item in seen if item.edge is not None],
                parameters,
                cotangents,
                retain_graph=True,
                allow_unused=True,
            )
        return [g.to_dense() if g is not None and g.is_sparse else g for g in found]


def _module_of(parameter: str) -> str:
    return parameter.rpartition(".")[0]


def _prefix(hook: _SiteHook) -> str:
    return f"{hook.name}." if hook.name else ""


def _as_a_whole(hook: _SiteHook) -> bool:
    """Whether all of a module belongs to the one unit of its site."""
    return hook.routes_parameters and hook.site.spec.width == 1 and hook.site.on == "output"


def _merged(a: Owned, b: Owned) -> Owned:
    def either(first: dict[str, Tensor], second: dict[str, Tensor]) -> dict[str, Tensor]:
        both = first.keys() & second.keys()
        return {**first, **second, **{name: first[name] | second[name] for name in both}}

    return Owned(either(a.writers, b.writers), either(a.readers, b.readers), a.biases | b.biases)
