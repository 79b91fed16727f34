"""A module, run on other tensors than its own: what it learns by, and which of that a site's mask is for."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor, nn

from .. import _torch_private as private
from ..errors import UsageError, preview
from ._past_itself import Looks
from ._site import computed_weights, routed_parameters
from ._site_mask import SiteMask


class Forward(Protocol):
    """A module's forward as it is without routing."""

    module: nn.Module
    draws: bool
    arguments: list[str]
    looks: Looks
    holds_itself: bool

    def plain(self, *args: Any, **kwargs: Any) -> Any:
        """The module's output."""


class Twin(nn.Module):
    """Runs a module past its hooks and its stand-in, on other parameters or buffers."""

    def __init__(self, forward: Forward) -> None:
        super().__init__()
        self.module = forward.module
        self.run = forward.plain

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.run(*args, **kwargs)

    def on(self, tensors: dict[str, Tensor], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The output, with some of the module's tensors replaced."""
        named = {f"module.{name}": tensor for name, tensor in tensors.items() if not name.startswith("=")}
        computed = [
            (owner, key, tensors[f"={name}"])
            for name, owner, key, _ in computed_weights(self.module)
            if f"={name}" in tensors
        ]
        before = [getattr(owner, key) for owner, key, _ in computed]
        values = [] if torch.compiler.is_compiling() or private.transforms_active() else _values(tensors)
        try:
            for owner, key, value in computed:
                owner.__dict__[key] = value
            # What others compute with weights that are cached is not what runs here; nor may it be the other way round.
            with private.parametrizations_computed_anew():
                return torch.func.functional_call(self, named, args, kwargs)
        finally:
            for name, tensor, held in values:
                if not tensor.is_set_to(held):  # by `.data` the module has put others in the place of its values
                    self.get_parameter(f"module.{name}").data = tensor.data
            for (owner, key, _), value in zip(computed, before, strict=True):
                owner.__dict__[key] = value


def _values(tensors: dict[str, Tensor]) -> list[tuple[str, Tensor, Tensor]]:
    """Those tensors that are of memory of their own, and what they hold."""
    plain = [(name, x) for name, x in tensors.items() if type(x) in (Tensor, nn.Parameter) and name[0] != "="]
    return [(name, x, x.detach()) for name, x in plain if x.layout is torch.strided]


class Handed:
    """The tensors that a module is handed, to be held against what they are after its run.

    Attributes:
        nodes: Their nodes in the graph.
    """

    def __init__(self, tensors: list[Tensor]) -> None:
        self._tensors = [] if torch.compiler.is_compiling() else tensors
        self._versions = list(map(private.version, self._tensors))
        self.nodes = [x.grad_fn for x in self._tensors]

    def written(self) -> list[Tensor]:
        """Those that were written to since."""
        return [x for x, version in zip(self._tensors, self._versions, strict=True) if private.version(x) != version]


def works_in_place(module: nn.Module) -> UsageError:
    """The error."""
    return UsageError(
        f"{type(module).__name__} works in place on a tensor that it is handed, and level='parameters' cannot route "
        "what reaches others by that tensor. Let it make a new one, x = x + y in the place of x += y, or put sites on "
        "the layers inside of it."
    )


def learning_tensors(module: nn.Module) -> dict[str, Tensor]:
    """What a module learns by: its parameters, and by names that begin with "=" weights computed of others."""
    found: dict[str, Tensor] = {name: p for name, p in module.named_parameters() if p.requires_grad}
    return found | {f"={name}": value for name, _, _, value in computed_weights(module)}


def routed_by(mask: SiteMask, module: nn.Module, learning: dict[str, Tensor]) -> set[str]:
    """Which of what a module learns by a site's mask is for: all, or what the site names.

    Raises:
        UsageError: A parameter that it names is gone, or a weight is computed of it together with others.
    """
    if mask.parameters is None:
        return set(learning)
    chosen = set(routed_parameters(module, mask.parameters))
    every = {name for name, _ in module.named_parameters(remove_duplicate=False)}
    computed = {name.removeprefix("=").removeprefix("."): name for name in learning if name.startswith("=")}
    found = {name for name in learning if name in chosen} | {computed[n] for n in mask.parameters if n in computed}
    named = {id(parameter) for name, parameter in module.named_parameters() if name in chosen}
    own = {id(parameter) for parameter in module.parameters() if parameter.requires_grad}
    for name in set(computed.values()) - found:
        sources = _leaves(learning[name]) & own
        if sources & named and not sources <= named:
            raise UsageError(
                f"site {mask.site!r}: {name[1:].lstrip('.')!r} of this {type(module).__name__} is computed of a "
                "parameter that the site names and of others that it does not: name all of them, or none."
            )
        if sources & named:
            found.add(name)
    gone = [name for name in mask.parameters if name not in every and name not in computed]
    if gone:
        raise UsageError(
            f"site {mask.site!r}: {gone[0]!r} is no parameter of this {type(module).__name__} any more. Remove the "
            "router, and make a new one with the names that there are now."
        )
    return found


def routed_together(masks: list[SiteMask], module: nn.Module, learning: dict[str, Tensor]) -> set[str]:
    """What learns by route in a module that runs twice: the same for all sites, or there would be more than two runs.

    Raises:
        UsageError: The sites name different parameters.
    """
    chosen = [routed_by(mask, module, learning) for mask in masks]
    if len([names for names in chosen if names != chosen[0]]) > 0:
        raise UsageError(
            f"sites {preview([mask.site for mask in masks], 2)} route different parameters of one "
            f"{type(module).__name__}, which would have to run more than twice here (a site on its input, second "
            "derivatives, torch.compile or torch.func). Let them name the same parameters, or put sites on the layers "
            "inside of it."
        )
    return chosen[0] if chosen else set()


def _leaves(tensor: Tensor) -> set[int]:
    """The leaves of the graph that a tensor was computed by."""
    found: set[int] = set()
    seen: set[Any] = set()
    to_visit = [tensor.grad_fn]
    while to_visit:
        node = to_visit.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        found.add(id(getattr(node, "variable", None)))
        to_visit += [inner for inner, _ in node.next_functions]
    return found
