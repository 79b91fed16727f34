"""Which layers write the units of a module that has no parameters, such as those of the ReLU behind a Linear."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property

from torch import nn

from ..errors import SiteError
from ..router._site import Site
from ..unit_dims import BATCH_NORMS, ELEMENTWISE, channel_dims, kind_of, n_units, unit_dims


class WritingLayers:
    """Finds the layers whose parameters write the units of a site.

    These are the site's own module, if it has parameters. If it has none, and computes each entry of its output from
    that entry of its input alone, then a closed unit gets no gradient before the module either. So the units are those
    of the layer before it, and of what is before that if it is a batch norm, which keeps channels apart. Which module
    comes before which is known in an `nn.Sequential`, and nowhere else.

    Args:
        modules: All modules of a model, each under every name that leads to it.
    """

    def __init__(self, modules: Mapping[str, nn.Module]) -> None:
        self._modules = modules

    def of(self, name: str, site: Site) -> tuple[str, ...]:
        """The names of the layers that write the units of a site on the module of this name.

        Raises:
            SiteError: The module is element-wise, and the layer before it is not known, or others read that, too.
        """
        if site.on == "input" or site.level == "parameters" or not self._is_elementwise(name):
            return (name,)
        found: list[str] = []
        here = name
        while not found or kind_of(self._modules[here]) in BATCH_NORMS:
            before = self._before(here)
            if before is None or not (self._is_elementwise(before) or unit_dims(self._modules[before], "output")):
                if found:  # nothing is known before a batch norm: it has parameters of its own
                    break
                raise self._unknown(name, here, site)
            here = before
            if not self._is_elementwise(here):
                found.append(here)
        return tuple(found)

    def _is_elementwise(self, name: str) -> bool:
        return kind_of(self._modules[name]) in ELEMENTWISE

    @cached_property
    def _names(self) -> dict[nn.Module, list[str]]:
        names: dict[nn.Module, list[str]] = {}
        for name, module in self._modules.items():
            names.setdefault(module, []).append(name)
        return names

    @cached_property
    def _children(self) -> dict[str, list[str]]:
        children: dict[str, list[str]] = {}
        for name in self._modules:
            if name:
                children.setdefault(name.rpartition(".")[0], []).append(name)
        return children

    def _neighbour(self, name: str) -> str | None:
        """The module that an `nn.Sequential` calls before this one."""
        if not name:
            return None
        parent = name.rpartition(".")[0]
        around = self._modules[parent]
        # The very class, with the forward of its own: it calls its modules one after the other.
        if kind_of(around) is not nn.Sequential or "forward" in vars(around):
            return None
        position = self._children[parent].index(name)
        return self._children[parent][position - 1] if position else None

    def _before(self, name: str) -> str | None:
        """The module whose output is this one's input and nobody else's; None where that is not known."""
        found = self._neighbour(name)
        # Under a second name either of them may stand elsewhere, and have other company there.
        together = [self._neighbour(other) for other in self._names[self._modules[name]]]
        if found is None or None in together or sorted(map(str, together)) != sorted(self._names[self._modules[found]]):
            return None
        return found

    def _unknown(self, name: str, here: str, site: Site) -> SiteError:
        before = self._neighbour(here)
        kind = type(self._modules[name]).__name__
        if before is None:
            why = f"what comes before a module is known only in an nn.Sequential, where nothing comes before {here!r}"
        elif self._before(here) is None:
            why = f"{before!r} or {here!r} is used in more than one place"
        else:
            why = f"before it comes {before!r}, and the units of a {type(self._modules[before]).__name__} are not known"
        return SiteError(
            f"site {name!r}: no parameters are known to belong to its units: a {kind} has none, and the layer that "
            f"writes them is not known, since {why}. Put the site on {self._suggested(name, site)}, or leave this site "
            "out: sites=[...] with the names of the others."
        )

    def _suggested(self, name: str, site: Site) -> str:
        fitting = [
            sibling
            for sibling in self._children.get(name.rpartition(".")[0], ())
            if unit_dims(self._modules[sibling], "output")
            and n_units(self._modules[sibling], "output") == site.spec.width
            and site.dim in channel_dims(self._modules[sibling])
        ]
        return f"{fitting[0]!r}, if that writes them" if len(fitting) == 1 else "the layer that writes them"
