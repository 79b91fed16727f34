"""Sites that no hook could route as they are meant, told when a router is attached."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import nn

from ... import _torch_private as private
from ...errors import SiteError
from ...unit_dims import channel_dims, unit_dims
from .._attachment import AttachedSite


def refuse_module_that_is_never_called(name: str, model: nn.Module) -> None:
    """No hook runs on a module whose parent uses its weights without calling it.

    Raises:
        SiteError: The module is such a one.
    """
    parent, _, child = name.rpartition(".")
    if child == "out_proj" and isinstance(model.get_submodule(parent), nn.MultiheadAttention):
        raise SiteError(
            f"{name!r} is never called: nn.MultiheadAttention reads its weights itself, so a site there would route "
            f"nothing. Put the site on {parent!r} with index=0: its output is that of the projection."
        )


def refuse_scripted(name: str, names: Mapping[str, nn.Module]) -> None:
    """What `torch.jit` has compiled computes without the hooks of the modules inside of it.

    Args:
        name: The name of the site's module.
        names: All modules by name.

    Raises:
        SiteError: The module is compiled so, or part of one that is.
    """
    steps = name.split(".") if name else []
    for depth in range(len(steps) + 1):
        around = ".".join(steps[:depth])
        if isinstance(names.get(around), torch.jit.ScriptModule):
            raise SiteError(
                f"{name!r} is compiled by torch.jit.script or torch.jit.trace ({around!r}), which runs no hooks inside "
                "of it: attach the router to the model as it was before; torch.compile takes a routed model as it is."
            )


def refuse_two_names(name: str, module: nn.Module, found: Sequence[AttachedSite]) -> None:
    """One module under two names has one set of hooks: every call would be masked by the labels of both.

    Raises:
        SiteError: A site on the same module was named otherwise.
    """
    for site in found:
        if site.module is module and site.name != name:
            raise SiteError(
                f"{site.name!r} and {name!r} are one module: each of its calls would be masked by the labels of both. "
                "Name it once; where its calls need labels of their own, call it through two wrapping modules, one "
                "site each."
            )


def refuse_spec_of_a_part(sites: Iterable[AttachedSite]) -> None:
    """A layer whose units several processes share has a part of them here, and each process another.

    Raises:
        SiteError: A spec has as many units as there are here, and would mean others in each process.
    """
    for site in sites:
        if site.site.is_whole or site.site.axis not in channel_dims(site.module):
            continue
        for name, dim in (unit_dims(site.module, site.site.on) or {}).items():
            weight = private.own_tensors(site.module).get(name)
            if weight is None or not private.is_distributed(weight):
                continue
            here, width = weight.detach().to_local().shape[dim], site.site.spec.width  # type: ignore[attr-defined]
            if here == width != weight.shape[dim]:
                raise SiteError(
                    f"site {site.name!r}: the spec has {width} units, and the layer has {weight.shape[dim]}, of which "
                    f"this process holds {here}: in each process it would mean others. Write the spec for all of them."
                )
