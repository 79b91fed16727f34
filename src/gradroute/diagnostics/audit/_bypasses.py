"""`Leaks`: finds what a label trains although its route leaves it out, by which path, and says what to do about it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from ...router._attachment import AttachedSite, attachment_of
from ...spec._masks import Mask
from ..harness._batches import Group
from ..harness._runs import Run, Runs
from ..harness._site_probes import along_units
from ..harness._untouched import norm, trainable
from ._experiments import Entries, held_alone, module_of
from ._graph_paths import Kind, Paths, nodes
from ._ownership import Ownership
from ._report import Bypass


class _Leak(NamedTuple):
    """What a label trains off its route: of a parameter or a site, by which path, and how much."""

    target: str
    kind: Kind
    share: float


class Leaks:
    """Finds what a label trains although its route leaves it out.

    Args:
        runs: The user's step.
        ownership: What belongs to which units.

    Attributes:
        silent: The names of the sites that never ran.
    """

    def __init__(self, runs: Runs, ownership: Ownership) -> None:
        self._runs = runs
        self._attachment = attachment_of(runs.router)
        self._ownership = ownership
        self._parameters = trainable(runs.router.model)
        self.silent: list[str] = []

    def of(self, group: Group, run: Run) -> list[Bypass]:
        """The bypasses of one label."""
        masks = self._attachment.masks(group.labels)
        found: dict[tuple[str, Kind], Bypass] = {}
        without_hooks: Run | None = None
        for position, attached in enumerate(self._attachment.sites):
            if bool(masks[attached.group].taught().all()):
                continue
            here = [leak for leak in self._at(position, masks, run) if leak.share > 0]
            if here and run.hooked:
                without_hooks = without_hooks or self._runs.label(group, routed=True, without_hooks=True)
                anyway = {leak.target for leak in self._at(position, masks, without_hooks) if leak.share > 0}
                here = [leak if leak.target in anyway else leak._replace(kind="gradient hook") for leak in here]
            for target, kind, share in here:
                if share > getattr(found.get((target, kind)), "share", 0.0):
                    advice = _ADVICE[kind].format(target=target, module=module_of(target), site=attached.name)
                    found[target, kind] = Bypass(group.label, target, kind, share, advice, attached.name)
        return list(found.values())

    def _at(self, position: int, masks: tuple[Mask, ...], run: Run) -> Iterator[_Leak]:
        """What a run trains off the route of one site; a share may be 0."""
        attached = self._attachment.sites[position]
        taught = masks[attached.group].taught().cpu()
        total = run.norm
        if run.calls[position] == 0:
            yield self._silent(attached, run, total)
            return
        paths: Paths | None = None

        def around() -> Paths:
            nonlocal paths
            edges = [seen.edge for seen in run.seen[position] if seen.edge is not None]
            paths = paths or Paths(run.loss, edges, [edge for edges in run.forks.values() for edge in edges])
            return paths

        if not attached.routes_parameters:
            for seen, gradient in zip(run.seen[position], run.at_sites[position], strict=True):
                leaked = 0.0 if gradient is None else norm([along_units(gradient, attached.site)[~taught]])
                if leaked > 0 and seen.edge is not None:
                    for kind in around().kinds(seen.edge):
                        yield _Leak(attached.name, kind, leaked / norm([gradient]))
        writers = self._ownership.writers(position, ~taught)
        owned = dict(writers.entries)
        if not bool(taught.any()):
            owned |= self._inside(position)
            for name in self._made_for_others(position, masks, run):
                owned.pop(name, None)
        for name, entries in owned.items():
            share = _share(run.gradients[name], entries, total)
            if share > 0:
                tied: list[Kind] = ["tied weight"]
                for kind in tied if attached.routes_parameters else around().kinds(self._parameters[name]):
                    yield _Leak(name, kind, share)
        for name, entries in writers.recurrent.items():
            yield _Leak(name, "recurrence", _share(run.gradients[name], entries, total))
        if attached.site.parameters is None:  # a site that names some holds these to the route, and no readers
            yield from self._by_readers(position, masks, run)

    def _inside(self, position: int) -> Entries:
        """All that belongs to the module of a site on its output, for a label that may teach none of its units.

        The inner layers of a module mix its units, and so write none alone; but such a label may not teach them either.
        """
        attached = self._attachment.sites[position]
        if attached.site.on == "input":
            return {}
        own = held_alone(attached, self._runs.router.model)
        return {name: torch.ones_like(p, dtype=torch.bool) for name, p in self._parameters.items() if p in own}

    def _made_for_others(self, position: int, masks: tuple[Mask, ...], run: Run) -> set[str]:
        """The parameters that make another tensor that a site's module returns, of which the label may teach units."""
        attached = self._attachment.sites[position]
        edges = [
            seen.edge
            for other, mine in enumerate(self._attachment.sites)
            if mine.module is attached.module
            and mine.site.on == "output"
            and mine.site.path != attached.site.path
            and bool(masks[mine.group].taught().any())
            for seen in run.seen[other]
            if seen.edge is not None
        ]
        made = {getattr(node, "variable", None) for node in nodes(edge.node for edge in edges)}
        return {name for name, parameter in self._parameters.items() if parameter in made}

    def _by_readers(self, position: int, masks: tuple[Mask, ...], run: Run) -> Iterator[_Leak]:
        taught, total = masks[self._attachment.sites[position].group].taught().cpu(), run.norm
        readers = self._ownership.readers(position, ~taught)
        for name, entries in readers.weights.items():
            read: Kind = "tied weight" if self._is_protected(name) else "reader"
            yield _Leak(name, read, _share(run.gradients[name], entries, total))
        for name, entries in readers.per_unit.items():
            yield _Leak(name, "per-unit parameter", _share(run.gradients[name], entries, total))
        for name in readers.biases:
            entries = ~self._written(name, position, masks)
            yield _Leak(name, "shared bias", _share(run.gradients[name], entries, total))

    def _silent(self, site: AttachedSite, run: Run, total: float) -> _Leak:
        """A site that did not run: if its module has parameters that learn, they learn unrouted."""
        name = site.name
        if name not in self.silent:
            self.silent.append(name)
        names = site.own_parameters()
        own = [gradient for parameter, gradient in run.gradients.items() if parameter in names]
        return _Leak(name, "silent site", norm(own) / total if own and total > 0 else float(not own))

    def _is_protected(self, parameter: str) -> bool:
        """Whether a site of level "parameters" is on the input of the parameter's module: then it is used elsewhere."""
        return any(
            attached.site.on == "input"
            and attached.routes_parameters
            and attached.name == module_of(parameter)
            and parameter in attached.own_parameters()
            for attached in self._attachment.sites
        )

    def _written(self, parameter: str, site: int, masks: tuple[Mask, ...]) -> Tensor:
        """Which entries of a parameter write units of another site, and are routed there."""
        entries = torch.zeros_like(self._parameters[parameter], dtype=torch.bool)
        for other, attached in enumerate(self._attachment.sites):
            if other != site and attached.site.spec.width > 1:
                taught = masks[attached.group].taught()
                for units in (taught, ~taught):
                    entries |= self._ownership.writers(other, units).entries.get(parameter, entries)
        return entries


def _share(gradient: Tensor | None, entries: Tensor, total: float) -> float:
    if gradient is None or total == 0:
        return 0.0
    dense = gradient.to_dense() if gradient.is_sparse else gradient
    return norm([dense[entries]]) / total


_ADVICE: dict[Kind, str] = {
    "side loss": "A term of the loss reads what site {site!r} routes, or what that is made of, before it is routed: "
    "compute it from the routed tensor, detach it, or allow it if it holds no label.",
    "skip connection": "A connection goes around site {site!r}: put the site behind where it joins, or detach it.",
    "auxiliary hook": "A hook of yours sees the tensor before site {site!r} routes it: register it after the router, "
    "on the site's own module, or on a module behind it.",
    "gradient hook": "A hook of yours changes gradients that site {site!r} has masked already: take it off, or let it "
    "leave a gradient of 0 as it is.",
    "tied weight": "{target!r} is used outside of its site, too, as a tied weight, in a penalty, or by what reads a "
    "tensor inside of the site's module: untie it, detach it there, or put a site on that use.",
    "recurrence": "Site {site!r} routes what comes out, and not the states that go from step to step, through which "
    "every unit's loss teaches all units: write a loop over a cell, such as nn.GRUCell, and put the site on the cell.",
    "reader": 'It reads units of site {site!r}: add {module!r}: Site(spec, on="input", level="parameters").',
    "per-unit parameter": "It has entries for each unit, and meets the units of site {site!r} after the site: put the "
    "site behind it, on what the two make, freeze it, or allow it.",
    "shared bias": "It is added to what reads site {site!r}, and belongs to no unit: build {module!r} with bias=False, "
    "freeze it, or allow it.",
    "silent site": "Module {site!r} was never called: call it, and not its forward method or its weights, or put the "
    "site on the module that is called.",
    "unknown path": "The graph of the loss hides the path around site {site!r}: look for a custom autograd function or "
    "a checkpoint.",
}
