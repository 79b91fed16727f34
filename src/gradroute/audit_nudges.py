"""`Nudges`: which weight columns read some units and nothing else, found by changing the units."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .audit_probes import Runs
from .audit_readers import Reading, Reads
from .audit_state import trainable
from .router import Labels, _SiteHook

#: Of the size of the activations. The small one stays on the same side of most kinks, such as a ReLU's; the large one
#: changes what is read beyond rounding.
_SMALL, _LARGE = 0.05, 2.0
_SEEDS = (1, 2)


@dataclass(frozen=True)
class _Edit:
    """What happens to the units of a site in a run: they are nudged, or with size 0, set to 0."""

    site: int
    units: Tensor
    size: float
    seed: int = 0


class Nudges:
    """Finds readers by experiment, on the whole batch and unrouted.

    A weight column belongs to units if what it reads

    - depends on the example: it changes when the examples of the batch trade places;
    - changes when the units are nudged;
    - does not change when the other units are, a little or a lot, from where they are or from elsewhere;
    - no longer depends on the example when the units are 0.

    So a column that reads a residual stream, or what a LayerNorm has mixed, is nobody's.
    """

    def __init__(self, runs: Runs, labels: Labels) -> None:
        self._runs = runs
        self._labels = labels
        self._parameters = trainable(runs.router.model)
        self._undisturbed: list[Reading] | None = None
        self._depends: list[Tensor] = []
        self.repeatable = True

    def readers(self, site: int, units: Tensor, others: Tensor) -> tuple[dict[str, Tensor], set[str]]:
        """For each parameter the entries that read these units and not the others, bool; and biases beside them."""
        hook = self._runs.router._hooks[site]
        before = self._before()
        if not self.repeatable or (hook.site.level == "parameters" and hook.site.spec.width == 1):
            return {}, set()
        reads_units = _changes(before, self._run(_Edit(site, units, _LARGE)))
        alike = _changes(before, self._run(_Edit(site, others, _SMALL)), self._run(_Edit(site, others, _LARGE)))
        # From other values of the units, too: on few examples a ReLU may hide from some neuron what it reads.
        for seed in _SEEDS:
            mine = _Edit(site, units, _LARGE, seed)
            runs = [self._run(mine, _Edit(site, others, _LARGE, seed + i)) for i in (0, len(_SEEDS))]
            alike = [old | new for old, new in zip(alike, _changes(*runs), strict=True)]
        off = _Edit(site, units, 0.0)
        still_depends = _changes(self._run(off), self._run(off, traded=True))
        entries: dict[tuple[str, int], Tensor] = {}
        biases = set()
        for position, reading in enumerate(before):
            columns = self._depends[position] & reads_units[position] & ~alike[position] & ~still_depends[position]
            # A weight that is used more than once is the units' only where each of its uses reads them.
            key = reading.weight, reading.dim
            entries[key] = columns & entries.get(key, columns)
            if bool(columns.any()) and reading.bias is not None and reading.bias in self._parameters:
                biases.add(reading.bias)
        found: dict[str, Tensor] = {}
        for (name, dim), columns in entries.items():
            if name in self._parameters and bool(columns.any()):
                parameter = self._parameters[name]
                shape = [1] * parameter.ndim
                shape[dim] = -1
                own = columns.to(parameter.device).view(shape).expand_as(parameter)
                found[name] = own | found.get(name, own)
        return found, biases

    def _before(self) -> list[Reading]:
        """The readings of the model as it is. Where a second run does not repeat them, nothing can be told."""
        if self._undisturbed is None:
            self._undisturbed, again, traded = self._run(), self._run(), self._run(traded=True)
            same = len(again) == len(self._undisturbed) == len(traded)
            self.repeatable = same and not any(bool(c.any()) for c in _changes(self._undisturbed, again))
            self._depends = _changes(self._undisturbed, traded)
        return self._undisturbed

    def _run(self, *edits: _Edit, traded: bool = False) -> list[Reading]:
        """All readings of a run; with ``traded=True`` on the batch with its examples in other places."""
        hooks = self._runs.router._hooks
        found: list[Reading] = []

        def edit(hook: _SiteHook, x: Tensor) -> Tensor:
            changed = x
            for one in edits:
                if hook is hooks[one.site]:
                    nudged = torch.zeros_like(x) if one.size == 0 else x + one.size * _scale(x) * noise(x, one.seed)
                    changed = torch.where(along(one.units, x, hook), nudged, changed)
            return changed

        with torch.no_grad(), Reads(self._runs.router.model, found.append):
            self._runs.whole(self._labels, edit, traded=traded)
        return found


def along(units: Tensor, x: Tensor, hook: _SiteHook) -> Tensor:
    """Units, bool [width], such that they broadcast against the tensor of a site."""
    shape = [1] * x.ndim
    shape[hook.site.dim] = -1
    return units.to(x.device).view(shape)


def noise(x: Tensor, seed: int = 0, *, positive: bool = False) -> Tensor:
    """Noise of a tensor's shape, between 0.5 and 1.5 in magnitude, the same for a seed."""
    # Of numpy, since torch's generators are watched here.
    generator = np.random.default_rng(seed)
    drawn = torch.from_numpy(generator.uniform(0.5, 1.5, tuple(x.shape)))
    if not positive:
        drawn *= torch.from_numpy(generator.choice([-1.0, 1.0], tuple(x.shape)))
    return drawn.to(x.device, x.dtype)


def _scale(x: Tensor) -> Tensor:
    """The size of activations; 1 where all of them are 0."""
    size = x.square().mean().sqrt()
    return torch.where(size > 0, size, 1.0)


def _changes(before: list[Reading], *afters: list[Reading]) -> list[Tensor]:
    """For each reading which columns are not the same in one of the other runs, bool [n_columns]."""
    found = []
    for position, old in enumerate(before):
        changed = torch.zeros(len(old.columns), dtype=torch.bool, device="cpu")
        for after in afters:
            same = position < len(after) and after[position].columns.shape == old.columns.shape
            changed |= (old.columns != after[position].columns).any(1).cpu() if same else True
        found.append(changed)
    return found
