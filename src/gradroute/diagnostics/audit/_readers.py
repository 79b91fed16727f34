"""`ReaderSearch`: which weight columns read some units of a site and nothing else, found by nudging the units."""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ...router._attachment import AttachedSite, Labels, attachment_of
from ...unit_dims import spread
from ..harness._runs import Runs
from ._experiments import Entries, against_others, noise
from ._smooth_activations import Softened
from ._weight_reads import Reading, Reads

# Of the size of the activations. The small nudge leaves them where functions are steep; the large one changes what is
# read beyond rounding.
_SMALL, _LARGE = 0.05, 2.0


@dataclass
class Readers:
    """What reads some units and nothing else.

    Attributes:
        weights: The entries of the weight columns that are multiplied with them.
        per_unit: The entries of parameters that meet them, each its own unit, in another way: by addition, say.
        biases: The names of the biases that are added to what the weight columns read.
    """

    weights: Entries = field(default_factory=dict)
    per_unit: Entries = field(default_factory=dict)
    biases: set[str] = field(default_factory=set)


@dataclass(frozen=True)
class _Edit:
    """Units of a site are held at what they are in the undisturbed run, plus noise of this size."""

    site: int
    units: Tensor
    size: float
    seed: int = 0


class ReaderSearch:
    """Runs the whole batch with some units of a site nudged, and looks at what each weight column then reads.

    Attributes:
        unknown: The names of parameters of which it is not known what they read.
        repeatable: Whether two runs of the step do the same. If not, no reader is found.
    """

    def __init__(self, runs: Runs, labels: Labels, parameters: dict[str, nn.Parameter]) -> None:
        self._runs = runs
        self._sites = attachment_of(runs.router).sites
        self._labels = labels
        self._parameters = parameters
        self._values: dict[tuple[int, int], Tensor] = {}  # of each site, call by call, as it is
        self._met_data: set[int] = set()  # the readings that were not the same in all runs
        self.unknown: set[str] = set()
        self._before = self._run()
        again = _aligned(self._before, self._run())
        changed = (_changed(position, self._before, again) for position in range(len(self._before)))
        self.repeatable = not any(bool(columns.any()) for columns in changed)

    def find(self, site: int, units: Tensor) -> Readers:
        """What reads these units of a site, bool [width], and nothing else."""
        before = self._before
        if not bool(units.any()) or len(units) == 1 or not self.repeatable or not self._runs.several:
            return Readers()
        columns = [torch.zeros(len(reading.columns), dtype=torch.bool, device="cpu") for reading in before]
        for mine, others in against_others(units):
            for position, found in enumerate(self._columns_that_read(site, mine, others)):
                columns[position] |= found
        readers = Readers()
        uses: dict[tuple[str, int], Tensor] = {}
        multiplied = {(reading.weight, reading.dim) for reading in before if reading.multiplies}
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
                kind = readers.weights if (name, dim) in multiplied else readers.per_unit
                kind[name] = entries | kind.get(name, entries)
        self._note_computed_weights()
        return readers

    def _note_computed_weights(self) -> None:
        """A parameter that met nothing but constants, entry by entry, became another weight, and who reads is lost."""
        met = {reading.weight for position, reading in enumerate(self._before) if position in self._met_data}
        others = {reading.weight for reading in self._before if not reading.entry_by_entry}
        self.unknown |= {reading.weight for reading in self._before} - met - others

    def _columns_that_read(self, site: int, units: Tensor, others: Tensor) -> list[Tensor]:
        """For each reading of the model, the columns that read these units and nothing else."""
        before = self._before
        nudge = _Edit(site, units, _LARGE)
        nudged = _aligned(before, self._run(nudge))
        columns = [
            _changed(position, before, nudged).expand(len(reading.columns)) for position, reading in enumerate(before)
        ]
        self._met_data |= {position for position, found in enumerate(columns) if bool(found.any())}
        for held, still in ((_Edit(site, units, 0.0), before), (nudge, nudged)):
            for size, traded in ((_SMALL, False), (_LARGE, True)):
                after = _aligned(before, self._run(held, _Edit(site, others, size, seed=1), traded=traded))
                changed = [_changed(position, still, after) for position in range(len(columns))]
                self._met_data |= {position for position, found in enumerate(changed) if bool(found.any())}
                columns = [mine & ~found for mine, found in zip(columns, changed, strict=True)]
        return columns

    def _run(self, *edits: _Edit, traded: bool = False) -> list[Reading]:
        """All readings of a run; with ``traded=True`` of the batch with its examples in other places."""
        found: list[Reading] = []
        calls: Counter[int] = Counter()

        def edit(attached: AttachedSite, x: Tensor) -> Tensor:
            position = self._sites.index(attached)
            call = position, calls[position]
            calls[position] += 1
            if not edits:
                self._values[call] = x.detach().clone()
            original = self._values.get(call)
            for one in edits:
                if one.site == position and original is not None and original.shape == x.shape:
                    size = original.square().mean().sqrt() if bool(original.any()) else 1.0
                    moved = original + one.size * size * noise(x, one.seed)
                    x = torch.where(spread(one.units.to(x.device), x, attached.site.axis), moved, x)
            return x

        reads = Reads(self._runs.router.model, found.append)
        with torch.no_grad(), Softened(), reads:
            self._runs.whole(self._labels, edit, traded=traded)
        self.unknown |= reads.unknown
        return found


def _aligned(before: Sequence[Reading], after: Sequence[Reading]) -> list[Reading | None]:
    """The readings of another run, each in its place in the first one; None where it is missing.

    Rows that were looked up in a weight are not known as its own any more once a site's edit has replaced them, so that
    the runs differ in number: by position alone, readings of different weights would be compared from there on.
    """
    found: defaultdict[Hashable, deque[Reading]] = defaultdict(deque)
    for reading in after:
        found[reading.use].append(reading)
    return [found[reading.use].popleft() if found[reading.use] else None for reading in before]


def _changed(position: int, before: Sequence[Reading | None], after: Sequence[Reading | None]) -> Tensor:
    """Which columns of a reading are not the same in another run, bool [n_columns]; all, [1], where it is missing."""
    one, other = before[position], after[position]
    if one is None or other is None or one.columns.shape != other.columns.shape:
        return torch.ones(1, dtype=torch.bool, device="cpu")
    old, new = one.columns, other.columns
    return ((old != new) & ~(old.isnan() & new.isnan())).any(1).cpu()
