"""Modules that were put into a model, or taken out of it, after the router was attached: no hook routes what came."""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase
from typing import TypeAlias

from torch import nn

from ... import _torch_private as private
from ...errors import UsageError, preview
from .._attachment import Attachment
from .._site import hook_points_of

Link: TypeAlias = tuple[dict[str, "nn.Module | None"], str, nn.Module]


class Placed:
    """Where the modules of the sites stand in the model, to notice when another stands there.

    Attributes:
        links: Each step from the model down to them: the children of a module, the name of one, and that one.
    """

    def __init__(self, attachment: Attachment) -> None:
        self._attachment = attachment
        self._names = {site.module: site.name for site in attachment.sites}
        self._note(self._names.values())

    def _note(self, names: Iterable[str]) -> None:
        found: dict[tuple[nn.Module, str], nn.Module] = {}
        for name in names:
            parent = self._attachment.model
            for step in name.split(".") if name else ():
                found[parent, step] = parent.get_submodule(step)
                parent = found[parent, step]
        self.links: list[Link] = [(private.children_of(parent), step, child) for (parent, step), child in found.items()]
        # In columns, which are compared without a line of Python for each: this is done twice a block.
        self._tables = [children for children, _, _ in self.links]
        self._steps = [step for _, step, _ in self.links]
        self._modules = [child for _, _, child in self.links]
        self._parents = [private.children_of(parent) for parent in dict.fromkeys(parent for parent, _ in found)]
        self._sizes = list(map(len, self._parents))

    def check(self) -> None:
        """Refuse a model in which a site's module is gone, or to which one was added that a pattern matches.

        Raises:
            UsageError: It is such a one.
        """
        # Modules are equal where they are the same.
        unmoved = list(map(dict.get, self._tables, self._steps)) == self._modules
        if not unmoved:
            _refuse_replaced_modules(self._attachment)
        if not unmoved or list(map(len, self._parents)) != self._sizes:
            _refuse_modules_that_came_later(self._attachment)
            names = {module: name for name, module in self._attachment.model.named_modules()}
            self._note([names[module] for module in self._names])  # wrapped, or moved


def _refuse_replaced_modules(attachment: Attachment) -> None:
    """Another module now stands where a site is, and no hook routes it.

    Raises:
        UsageError: A site's module is gone, or wrapped in one that learns something of its own.
    """
    names = attachment.modules_by_every_name()
    there = set(names.values())
    gone = [site.name for site in attachment.sites if site.module not in there]
    if gone:
        raise UsageError(
            f"the modules of the sites {preview(gone, 3)} are no longer in the model: they were replaced or taken "
            "out after the router was attached, so nothing would route what stands there now. Remove the router "
            "and make a new one."
        )
    for site in attachment.sites:
        _refuse_wrapper_that_learns(site.name, site.module, names.get(site.name))


def _refuse_wrapper_that_learns(name: str, module: nn.Module, wrapper: nn.Module | None) -> None:
    """What now stands in a site's place, around its module, adds parameters that go around the site: an adapter."""
    if wrapper is None or module not in wrapper.modules():
        return
    known = set(module.parameters())
    own = [inner for inner, p in wrapper.named_parameters() if p.requires_grad and p not in known]
    if own:
        raise UsageError(
            f"the module of site {name!r} was wrapped in a {type(wrapper).__name__} after the router was attached, "
            f"and what that adds by parameters of its own ({preview(own, 2)}) goes around the site. Remove the "
            "router, and make it after the model is wrapped."
        )


def _refuse_modules_that_came_later(attachment: Attachment) -> None:
    """A layer that was added after the router was attached has no hook, though a pattern matches its name.

    Raises:
        UsageError: There is one.
    """
    names = attachment.modules_by_every_name()
    names |= {hook: names[name] for hook, name in hook_points_of(names).items()}
    for number, group in enumerate(attachment.groups):
        known = [site.module for site in attachment.sites if site.group == number]
        inside = {inner for module in known for inner in module.modules()}
        later = [
            name for name, module in names.items() if name and fnmatchcase(name, group.pattern) and module not in inside
        ]
        wrapped = [name for name in later if any(module in known for module in names[name].modules())]
        if len(later) > len(wrapped):
            raise UsageError(
                f"pattern {group.pattern!r} also matches {preview([n for n in later if n not in wrapped], 3)}, which "
                "came into the model after the router was attached, so nothing would route it. Remove the router, and "
                "make a new one."
            )
