"""`Leaks`: what the gradient of a label reaches although its route leaves it out, by which path, and what to do."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ...router._attachment import attachment_of
from ...router._router import Router
from ...spec._masks import Mask
from ..harness._batches import Group
from ..harness._runs import Run
from ..harness._untouched import norm, trainable
from ._graph_paths import Kind, Paths
from ._ownership import Ownership, module_of
from ._report import Bypass


class Leaks:
    """Compares what a label trains with what its route leaves out.

    Args:
        router: The router.
        ownership: What belongs to which units.

    Attributes:
        silent: The names of the sites that never ran.
    """

    def __init__(self, router: Router, ownership: Ownership) -> None:
        self._router = router
        self._attachment = attachment_of(router)
        self._ownership = ownership
        self._parameters = trainable(router.model)
        self.silent: list[str] = []

    def of(self, group: Group, run: Run) -> list[Bypass]:
        """The bypasses of one label."""
        masks = self._attachment.masks(group.labels)
        total = run.norm
        found: dict[tuple[str, Kind], Bypass] = {}
        for position, hook in enumerate(self._attachment.sites):
            taught = masks[hook.group].taught().cpu()
            if bool(taught.all()):
                continue
            for target, kind, share in self._at(position, masks, run, total):
                if share > 0 and share > getattr(found.get((target, kind)), "share", 0.0):
                    advice = _ADVICE[kind].format(target=target, module=module_of(target), site=hook.name)
                    found[target, kind] = Bypass(group.label, target, kind, share, advice, hook.name)
        return list(found.values())

    def _at(self, position: int, masks: tuple[Mask, ...], run: Run, total: float) -> Iterator[tuple[str, Kind, float]]:
        hook = self._attachment.sites[position]
        taught = masks[hook.group].taught().cpu()
        if run.calls[position] == 0:
            yield from self._silent(hook.name, run, total)
            return
        paths: Paths | None = None

        def around() -> Paths:
            nonlocal paths
            edges = [seen.edge for seen in run.seen[position] if seen.edge is not None]
            paths = paths or Paths(run.loss, edges, [edge for edges in run.forks.values() for edge in edges])
            return paths

        if not hook.routes_parameters:
            for seen, gradient in zip(run.seen[position], run.at_sites[position], strict=True):
                leaked = 0.0 if gradient is None else norm([gradient.movedim(hook.site.dim, 0)[~taught]])
                if leaked > 0 and seen.edge is not None:
                    for kind in around().kinds(seen.edge):
                        yield hook.name, kind, leaked / norm([gradient])
        for name, entries in self._ownership.writers(position, ~taught).items():
            share = _share(run.gradients[name], entries, total)
            if share > 0:
                tied: list[Kind] = ["tied weight"]
                for kind in tied if hook.routes_parameters else around().kinds(self._parameters[name]):
                    yield name, kind, share
        readers = self._ownership.readers(position, ~taught)
        for name, entries in readers.weights.items():
            kind = "tied weight" if self._is_protected(name) else "reader"
            yield name, kind, _share(run.gradients[name], entries, total)
        for name in readers.biases:
            yield name, "shared bias", _share(run.gradients[name], ~self._written(name, position, masks), total)

    def _silent(self, name: str, run: Run, total: float) -> Iterator[tuple[str, Kind, float]]:
        """A site that did not run: if its module has parameters that learn, they learn unrouted."""
        if name not in self.silent:
            self.silent.append(name)
        prefix = f"{name}." if name else ""
        own = [gradient for parameter, gradient in run.gradients.items() if parameter.startswith(prefix)]
        yield name, "silent site", norm(own) / total if own and total > 0 else float(not own)

    def _is_protected(self, parameter: str) -> bool:
        """Whether a site of level "parameters" is on the input of the parameter's module: then it is used elsewhere."""
        return any(
            hook.site.on == "input" and hook.routes_parameters and hook.name == module_of(parameter)
            for hook in self._attachment.sites
        )

    def _written(self, parameter: str, site: int, masks: tuple[Mask, ...]) -> Tensor:
        """Which entries of a parameter write units of another site, and are routed there."""
        entries = torch.zeros_like(self._parameters[parameter], dtype=torch.bool)
        for other, hook in enumerate(self._attachment.sites):
            if other != site and hook.site.spec.width > 1:
                taught = masks[hook.group].taught()
                for units in (taught, ~taught):
                    entries |= self._ownership.writers(other, units).get(parameter, entries)
        return entries


def _share(gradient: Tensor | None, entries: Tensor, total: float) -> float:
    if gradient is None or total == 0:
        return 0.0
    dense = gradient.to_dense() if gradient.is_sparse else gradient
    return norm([dense[entries]]) / total


_ADVICE: dict[Kind, str] = {
    "side loss": "A term of the loss reads what site {site!r} routes before it is routed: compute it from the routed "
    "tensor, detach it, or allow it if it holds no label.",
    "skip connection": "A connection goes around site {site!r}: put the site behind where it joins, or detach it.",
    "auxiliary hook": "A hook of yours sees the tensor before site {site!r} routes it: register it after the router, "
    "on the site's own module, or on a module behind it.",
    "tied weight": "{target!r} is used outside of its site, too, as a tied weight or a penalty: untie it, detach it "
    "there, or put a site on that use.",
    "reader": 'It reads units of site {site!r}: add {module!r}: Site(spec, on="input", level="parameters").',
    "shared bias": "It is added to what reads site {site!r}, and belongs to no unit: build {module!r} with bias=False, "
    "freeze it, or allow it.",
    "silent site": "Module {site!r} was never called: call it, and not its forward method or its weights, or put the "
    "site on the module that is called.",
    "unknown path": "The graph of the loss hides the path around site {site!r}: look for a custom autograd function or "
    "a checkpoint.",
}
