"""`Ownership`: which entries of a model's parameters write some units of a site, or read them, and nothing else."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from ...router._attachment import Labels
from ..harness._runs import Runs
from ..harness._untouched import trainable
from ._readers import Readers, ReaderSearch
from ._writers import Writers, find_writers

_Units = tuple[int, tuple[bool, ...]]
"""A site, by its position, and some of its units."""


@dataclass
class Known:
    """What was found so far of a router and a step, by site and units. It is the same for every batch.

    Attributes:
        writers: See `Ownership`.
        readers: See `Ownership`.
        unknown: The names of parameters of which it is not known what they read.
        repeatable: Whether two runs of the step do the same. If not, no reader is found.
    """

    writers: dict[_Units, Writers] = field(default_factory=dict)
    readers: dict[_Units, Readers] = field(default_factory=dict)
    unknown: set[str] = field(default_factory=set)
    repeatable: bool = True


class Ownership:
    """Finds by experiment what belongs to some units of a site and to nothing else.

    The experiments are runs of the whole batch, unrouted, and `Softened`: what depends on what is asked for, and not
    what happens to be off.

    *Writers* are the entries of parameters that a random gradient on these units reaches, and one on the site's other
    units does not: the weight rows and biases that make them, however far before the site.

    *Readers* are the weight columns that meet a tensor which changes when these units are nudged and, while they are
    held fixed, stays the same whatever else changes: the other units, or the examples.

    So what makes units of all labels, or reads a mixture of them (behind a LayerNorm, in a residual stream), is shared,
    and belongs to nobody. Where all units of a site are asked for there are no others to compare with; then each half
    is held against the other. Of a site's single unit, only writers in the site's own module are known.
    """

    def __init__(self, runs: Runs, labels: Labels, known: Known) -> None:
        self._runs = runs
        self._labels = labels
        self._known = known
        self._parameters = trainable(runs.router.model)
        self._search: ReaderSearch | None = None

    def writers(self, site: int, units: Tensor) -> Writers:
        """What writes these units of a site, bool [width], and no others."""
        units = units.cpu()
        key = site, tuple(units.tolist())
        if key not in self._known.writers:
            self._known.writers[key] = find_writers(self._runs, self._labels, site, units, self._parameters)
        return self._known.writers[key]

    def readers(self, site: int, units: Tensor) -> Readers:
        """What reads these units of a site, bool [width], and nothing else."""
        units = units.cpu()
        key = site, tuple(units.tolist())
        if key not in self._known.readers:
            # The model as it is, is looked at once for all sites and units.
            self._search = self._search or ReaderSearch(self._runs, self._labels, self._parameters)
            self._known.readers[key] = self._search.find(site, units)
            self._known.unknown |= self._search.unknown
            self._known.repeatable = self._search.repeatable
        return self._known.readers[key]
