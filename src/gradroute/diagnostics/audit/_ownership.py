"""`Ownership`: which entries of a model's parameters write some units of a site, or read them, and nothing else."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from ...router._attachment import AttachedSite, Labels, attachment_of
from ...unit_dims import spread
from ..harness._runs import Runs
from ..harness._site_probes import Probes
from ..harness._untouched import trainable
from ._smooth_activations import Softened
from ._weight_reads import Reading, Reads

# Of the size of the activations. The small nudge leaves them where functions are steep; the large one changes what is
# read beyond rounding.
_SMALL, _LARGE = 0.05, 2.0

Entries = dict[str, Tensor]
"""For parameters by their names, which of their entries, bool."""


@dataclass
class Readers:
    """What reads some units and nothing else.

    Attributes:
        weights: The entries of the weight columns that read them.
        biases: The names of the biases that are added to what these read.
    """

    weights: Entries = field(default_factory=dict)
    biases: set[str] = field(default_factory=set)


@dataclass
class Known:
    """What was found so far of a router and a step, by site and units. It is the same for every batch.

    Attributes:
        writers: See `Ownership`.
        readers: See `Ownership`.
        unknown: The names of parameters of which it is not known what they read.
        repeatable: Whether two runs of the step do the same. If not, no reader is found.
    """

    writers: dict[tuple[int, tuple[bool, ...]], Entries] = field(default_factory=dict)
    readers: dict[tuple[int, tuple[bool, ...]], Readers] = field(default_factory=dict)
    unknown: set[str] = field(default_factory=set)
    repeatable: bool = True


class Ownership:
    """Finds by experiment what belongs to some units of a site and to nothing else.

    The experiments are runs of the whole batch, unrouted, and `Softened`: what depends on what is asked for, and not
    what happens to be off.

    *Writers* are the entries of parameters that a random gradient on these units reaches, and one on the site's other
    units does not: the weight rows and biases that make them, however far before the site.

    *Readers* are the weight columns that read a tensor which changes when these units are nudged and, while they are
    held fixed, stays the same whatever else changes: the other units, or the examples.

    So what makes units of all labels, or reads a mixture of them (behind a LayerNorm, in a residual stream), is shared,
    and belongs to nobody. Where all units of a site are asked for there are no others to compare with; then each half
    is held against the other. Of a site's single unit, only writers in the site's own module are known.
    """

    def __init__(self, runs: Runs, labels: Labels, known: Known) -> None:
        self._runs = runs
        self._router = runs.router
        self._attachment = attachment_of(runs.router)
        self._labels = labels
        self._known = known
        self._parameters = trainable(runs.router.model)
        self._values: dict[tuple[int, int], Tensor] = {}  # of each site, call by call, as it is
        self._before: list[Reading] | None = None

    def writers(self, site: int, units: Tensor) -> Entries:
        """What writes these units of a site, bool [width], and no others."""
        units = units.cpu()
        key = site, tuple(units.tolist())
        if key not in self._known.writers:
            self._known.writers[key] = self._find_writers(site, units)
        return self._known.writers[key]

    def readers(self, site: int, units: Tensor) -> Readers:
        """What reads these units of a site, bool [width], and nothing else."""
        units = units.cpu()
        key = site, tuple(units.tolist())
        if key not in self._known.readers:
            self._known.readers[key] = self._find_readers(site, units)
        return self._known.readers[key]

    # ------------------------------------------------------------------ writers

    def _find_writers(self, site: int, units: Tensor) -> Entries:
        hook = self._attachment.sites[site]
        if not bool(units.any()) or (hook.routes_parameters and hook.site.on == "input"):
            return {}
        prefix = f"{hook.name}." if hook.name else ""
        own = {name: parameter for name, parameter in self._parameters.items() if name.startswith(prefix)}
        if hook.routes_parameters and len(units) == 1:  # all of the module belongs to its one unit
            return {name: torch.ones_like(parameter, dtype=torch.bool) for name, parameter in own.items()}
        among = own if hook.routes_parameters or len(units) == 1 else self._parameters
        if not among:
            return {}
        with torch.enable_grad(), Softened():
            # A graph of its own each time: the next forward pass writes to buffers that a BatchNorm's backward reads.
            _loss, graph = self._runs.whole(self._labels)
        found: Entries = {}
        for mine, others in _against_others(units):
            for name, entries in self._reached_by_these_alone(graph, site, mine, others, among).items():
                found[name] = found[name] | entries if name in found else entries
        return found

    def _reached_by_these_alone(
        self, graph: Probes, site: int, units: Tensor, others: Tensor, among: dict[str, torch.nn.Parameter]
    ) -> Entries:
        wanted = list(among.values())
        mine = self._reached(graph, site, units, wanted, seed=0)
        # What rounding alone reaches belongs to nobody: a key's bias before a softmax, a bias before a BatchNorm. It is
        # told by its size, next to the rest of its module.
        largest: dict[str, float] = {}
        for name, gradient in zip(among, mine, strict=True):
            if gradient is not None and gradient.numel():
                module = module_of(name)
                largest[module] = max(largest.get(module, 0.0), float(gradient.abs().max()))
        found = {}
        for name, gradient in zip(among, mine, strict=True):
            if gradient is not None:
                rounding = torch.finfo(gradient.dtype).eps ** 0.5 * largest.get(module_of(name), 0.0)
                found[name] = gradient.abs() > rounding
        del mine
        # Again and again, since what cancels but for rounding may give 0 by chance.
        for seed in range(3):
            for name, gradient in zip(among, self._reached(graph, site, others, wanted, seed), strict=True):
                if name in found and gradient is not None:
                    found[name] &= gradient == 0
        return {name: entries for name, entries in found.items() if bool(entries.any())}

    def _reached(
        self, graph: Probes, site: int, units: Tensor, parameters: list[torch.nn.Parameter], seed: int
    ) -> list[Tensor | None]:
        """The gradient of the parameters for a random gradient on some units of a site."""
        hook = self._attachment.sites[site]
        seen = [(item.edge, item.like) for item in graph.seen[site] if item.edge is not None]
        if not seen:
            return [None] * len(parameters)
        # Positive, so that what many entries of the batch have in common does not cancel by chance.
        cotangents = [_noise(like, seed).abs() * spread(units.to(like.device), like, hook.site.dim) for _, like in seen]
        with self._attachment.suspended(), self._router(self._labels):  # where checkpoints recompute
            found = torch.autograd.grad(
                [edge for edge, _ in seen], parameters, cotangents, retain_graph=True, allow_unused=True
            )
        return [g.to_dense() if g is not None and g.is_sparse else g for g in found]

    # ------------------------------------------------------------------ readers

    def _find_readers(self, site: int, units: Tensor) -> Readers:
        before = self._undisturbed()
        if not bool(units.any()) or len(units) == 1 or not self._known.repeatable or not self._runs.several:
            return Readers()
        columns = [torch.zeros(len(reading.columns), dtype=torch.bool, device="cpu") for reading in before]
        for mine, others in _against_others(units):
            for position, found in enumerate(self._columns_that_read(site, mine, others, before)):
                columns[position] |= found
        readers = Readers()
        uses: dict[tuple[str, int], Tensor] = {}
        for reading, found in zip(before, columns, strict=True):
            # A weight that is used more than once is the units' only where each of its uses reads them.
            key = reading.weight, reading.dim
            uses[key] = found & uses.get(key, found)
        readers.biases = {
            reading.bias
            for reading in before
            if reading.bias in self._parameters and bool(uses[reading.weight, reading.dim].any())
        }
        for (name, dim), found in uses.items():
            if name in self._parameters and bool(found.any()):
                parameter = self._parameters[name]
                entries = spread(found.to(parameter.device), parameter, dim).expand_as(parameter)
                readers.weights[name] = entries | readers.weights.get(name, entries)
        return readers

    def _columns_that_read(self, site: int, units: Tensor, others: Tensor, before: list[Reading]) -> list[Tensor]:
        """For each reading of the model, the columns that read these units and nothing else."""
        nudge = _Edit(site, units, _LARGE)
        nudged = self._run(nudge)
        columns = [
            _changed(position, before, nudged).expand(len(reading.columns)) for position, reading in enumerate(before)
        ]
        for held, still in ((_Edit(site, units, 0.0), before), (nudge, nudged)):
            for size, traded in ((_SMALL, False), (_LARGE, True)):
                after = self._run(held, _Edit(site, others, size, seed=1), traded=traded)
                columns = [
                    mine & ~_changed(position, still, after) if bool(mine.any()) else mine
                    for position, mine in enumerate(columns)
                ]
        return columns

    def _undisturbed(self) -> list[Reading]:
        """The readings of the model as it is."""
        if self._before is None:
            self._before, again = self._run(), self._run()
            changed = (_changed(position, self._before, again) for position in range(len(self._before)))
            self._known.repeatable = not any(bool(columns.any()) for columns in changed)
        return self._before

    def _run(self, *edits: _Edit, traded: bool = False) -> list[Reading]:
        """All readings of a run; with ``traded=True`` of the batch with its examples in other places."""
        hooks = self._attachment.sites
        found: list[Reading] = []
        calls: Counter[int] = Counter()

        def edit(hook: AttachedSite, x: Tensor) -> Tensor:
            call = hooks.index(hook), calls[hooks.index(hook)]
            calls[hooks.index(hook)] += 1
            if not edits:
                self._values[call] = x.detach().clone()
            original = self._values.get(call)
            for one in edits:
                if one.site == call[0] and original is not None and original.shape == x.shape:
                    size = original.square().mean().sqrt() if bool(original.any()) else 1.0
                    moved = original + one.size * size * _noise(x, one.seed)
                    x = torch.where(spread(one.units.to(x.device), x, hook.site.dim), moved, x)
            return x

        reads = Reads(self._router.model, found.append)
        with torch.no_grad(), Softened(), reads:
            self._runs.whole(self._labels, edit, traded=traded)
        self._known.unknown |= reads.unknown
        return found


@dataclass(frozen=True)
class _Edit:
    """Units of a site are held at what they are in the undisturbed run, plus noise of this size."""

    site: int
    units: Tensor
    size: float
    seed: int = 0


def module_of(parameter: str) -> str:
    """The name of the module that holds a parameter.

    >>> module_of("encoder.0.weight")
    'encoder.0'
    """
    return parameter.rpartition(".")[0]


def _against_others(units: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Units and the others to compare them with."""
    if bool(units.all()) and len(units) > 1:
        half = torch.arange(len(units), device="cpu") < len(units) // 2
        yield half, ~half
        yield ~half, half
    else:
        yield units, ~units


def _noise(x: Tensor, seed: int) -> Tensor:
    """Noise of a tensor's shape, between 0.5 and 1.5 in magnitude and of either sign; the same for a seed."""
    # Of numpy, since torch's generators are watched here.
    generator = np.random.default_rng(seed)
    drawn = generator.uniform(0.5, 1.5, tuple(x.shape)) * generator.choice([-1.0, 1.0], tuple(x.shape))
    return torch.from_numpy(np.asarray(drawn)).to(x.device, x.dtype)


def _changed(position: int, before: list[Reading], after: list[Reading]) -> Tensor:
    """Which columns of a reading are not the same in another run, bool [n_columns]; all, [1], where it is missing."""
    if position >= min(len(before), len(after)) or before[position].columns.shape != after[position].columns.shape:
        return torch.ones(1, dtype=torch.bool, device="cpu")
    old, new = before[position].columns, after[position].columns
    return ((old != new) & ~(old.isnan() & new.isnan())).any(1).cpu()
