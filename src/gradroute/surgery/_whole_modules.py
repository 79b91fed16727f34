"""Whole modules: sites whose one unit is all that a module returns. What shows that it can go, and takes it out."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from enum import Enum
from types import NoneType
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from .. import _torch_private as private
from ..errors import SiteError
from ..router._attachment import AttachedSite
from ._absent import Absent, tensors_of_call
from .graph._constants import constants
from .graph._exported import Program, is_tensor

# What an argument may be that a module cannot write to, beside tensors, which are compared with what the ablated model
# makes of them.
_VALUES: Final = (Tensor, int, float, complex, str, bytes, slice, range, NoneType, torch.dtype, torch.device, Enum)


class Call(NamedTuple):
    """One call of a module."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Any


class WholeModules:
    """The modules of sites of one unit, and how they were called.

    Attributes:
        sites: For each module, its sites.
        calls: For each module, its calls in the block `watching`.
    """

    def __init__(self) -> None:
        self.sites: dict[nn.Module, list[AttachedSite]] = {}
        self.calls: dict[nn.Module, list[Call]] = {}

    def add(self, site: AttachedSite) -> None:
        """Add a site of one unit, which is off."""
        self.sites.setdefault(site.module, []).append(site)
        self.calls.setdefault(site.module, [])

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """For the length of the block, the calls of the modules are noted, with what the router makes of the output."""

        def note(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            self.calls[module].append(Call(args, kwargs, output))

        handles = [module.register_forward_hook(note, with_kwargs=True) for module in self.sites]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def silent_if_zeroed(self) -> list[nn.Module]:
        """The modules of which all that they return is off, and is provably 0, too, when their parameters are."""
        return [
            module
            for module, calls in self.calls.items()
            if self.returns_nothing_else(module) and _plain_parameters(module) and makes_zeros_of_zeros(module, calls)
        ]

    def returns_nothing_else(self, module: nn.Module) -> bool:
        """Whether the sites of a module switch off every tensor that it returns."""
        paths = {attached.site.path for attached in self.sites[module] if attached.site.on == "output"}
        return all(len(private.tensors_in(call.output)) == len(paths) for call in self.calls[module])

    def absent(self) -> dict[str, Absent]:
        """What stands in for each module.

        Raises:
            SiteError: It cannot be told what would.
        """
        return {attached[0].name: self._absent(module) for module, attached in self.sites.items()}

    def _absent(self, module: nn.Module) -> Absent:
        name, kind, calls = self.sites[module][0].name, type(module).__name__, self.calls[module]
        why, instead = "", "ablate_ folds the ablation into the weights, and takes nothing out."
        if not name:
            why, instead = "it is the model itself", "Give the router the model around it."
        elif any(attached.site.on == "input" for attached in self.sites[module]):
            why = "its input is switched off, and what it makes of an input of 0 goes on being needed"
            instead = f"Put the site on its output, if all of it shall go. {instead}"
        elif not [*module.parameters(), *module.buffers()]:
            why = "it has neither parameters nor buffers, so that nothing would be smaller"
            instead = f"Put the site on the module that has them. {instead}"
        elif not calls:
            why, instead = "it did not run on this example", "Give one that uses it."
        elif written := [kind for call in calls for kind in _objects((call.args, call.kwargs))]:
            why = f"it is given a {written[0]}, to which it may write what others read, as to a cache"
        elif not self.returns_nothing_else(module):
            why = "it returns other tensors too, which go on being needed"
            instead = f"Give it a site for each, by Site(..., index=...). {instead}"
        if why:
            raise SiteError(f"site {name!r}: this {kind} cannot be taken out as a whole: {why}. {instead}")
        try:
            dim = self.sites[module][0].site.dim
            made = [Absent(kind, tensors_of_call(call.args, call.kwargs), call.output, dim=dim) for call in calls]
        except SiteError as error:
            raise SiteError(
                f"site {name!r}: this {kind} cannot be taken out as a whole, since the zeros in its place may be of "
                f"another shape for another input: {error}. Where one dimension alone is not its argument's, say "
                f"which, by Site(..., dim=...). {instead}"
            ) from None
        if any(one.zeros != made[0].zeros for one in made):
            raise SiteError(
                f"site {name!r}: this {kind} cannot be taken out as a whole: the shapes that it returns depend on its "
                f"arguments in more than one way. {instead}"
            )
        return made[0]


def _objects(arguments: Any) -> list[str]:
    """The classes of arguments that are no tensors or values, such as a cache of keys and values."""
    return [
        type(leaf).__name__
        for leaf in private.leaves_of(arguments)
        if not isinstance(leaf, _VALUES) and not callable(leaf)
    ]


def _plain_parameters(module: nn.Module) -> bool:
    tensors = [tensor for inner in module.modules() for tensor in private.own_tensors(inner).values()]
    return all(type(tensor) in (Tensor, nn.Parameter, nn.Buffer) for tensor in tensors)


def makes_zeros_of_zeros(module: nn.Module, calls: list[Call]) -> bool:
    """Whether all that a module returns is 0, whatever its input, when all its parameters are: so says its program."""
    try:
        return bool(calls) and all(_makes_zeros(module, call) for call in calls)
    except SiteError:  # it has no program
        return False


class _Around(nn.Module):
    """Calls a module: torch.export takes no model whose forward method is an object, as a router's stand-in is."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.module(*args, **kwargs)


def _makes_zeros(module: nn.Module, call: Call) -> bool:
    program = Program(_Around(module).eval(), call.args, call.kwargs, ())
    for node, name in program.names.items():
        if name not in program.buffers:
            program.tensors[node] = torch.zeros_like(program.tensors[node])
    known = constants(program)
    zeros = {node for (node, _), values in known.items() if bool((values == 0).all())}
    returned = next(node for node in program.graph.nodes if node.op == "output").args[0]
    return all(leaf in zeros for leaf in returned if is_tensor(leaf))


def take_out(model: nn.Module, absent: dict[str, Absent], optimizer: Optimizer | None) -> tuple[str, ...]:
    """Put what stands in for modules in their place, under all their names; return the names of the tensors that went.

    An optimizer forgets the parameters that the model then does not have any more.
    """
    before = _names(model)
    modules = dict(model.named_modules(remove_duplicate=False))
    for name, module in modules.items():
        for gone, stand_in in absent.items():
            if module is modules[gone]:
                parent, _, child = name.rpartition(".")
                modules[parent].register_module(child, stand_in)
    if optimizer is not None:
        left = set(model.parameters())
        for group in optimizer.param_groups:
            stays = [parameter in left for parameter in group["params"]]
            for parameter in group["params"]:
                if parameter not in left:
                    optimizer.state.pop(parameter, None)
            for key in ("params", "param_names"):
                if key in group:
                    group[key] = [one for one, stay in zip(group[key], stays, strict=True) if stay]
    after = _names(model)
    return tuple(name for name in before if name not in after)


def _names(model: nn.Module) -> dict[str, Tensor]:
    return {
        **dict(model.named_parameters(remove_duplicate=False)),
        **dict(model.named_buffers(remove_duplicate=False)),
    }
