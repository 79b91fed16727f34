"""Which entries of a model's parameters belong to the units of a router's sites, and who else uses them."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import TypeAlias

from torch import nn

from .. import _torch_private as private
from ..errors import SiteError, did_you_mean
from ..router._attachment import attachment_of
from ..router._router import Router
from ..router._site import Site, routed_parameters
from ..unit_dims import channel_dims, unit_dims
from ._writing_layers import WritingLayers

# One use of a parameter by a module: each dimension of the parameter that counts routed units, with the number of the
# group of sites whose units they are. In place of a dimension stands None where the whole parameter is one unit's.
# A place without a site is empty. Through a place, a label may teach an entry of the parameter if, along each of these
# dimensions, it may teach the unit to which the entry belongs.
Place: TypeAlias = tuple[tuple[int | None, int], ...]


def places_of(router: Router, sites: Collection[str] | None) -> dict[nn.Parameter, tuple[Place, ...]]:
    """For each parameter that belongs to units of these sites (all by default), the places that use it.

    Raises:
        SiteError: No parameters are known that belong to the units of a site, or `sites` names none.
        UsageError: The router was removed.
    """
    attachment_of(router).check_usable()
    for name in sites or ():
        if name not in router.sites:
            raise SiteError(f"sites names {name!r}, no site of this router. {did_you_mean(name, router.sites)}")
    modules = attachment_of(router).modules_by_every_name()
    layers = WritingLayers(modules)
    own: dict[nn.Module, list[tuple[dict[str, int | None], int]]] = {}
    whole: dict[nn.Module, list[tuple[set[nn.Parameter], int]]] = {}
    for attached in attachment_of(router).sites:
        if sites is None or attached.name in sites:
            module = modules[attached.name]
            if _is_whole(attached.site, module):
                routed = set(routed_parameters(module, attached.site.parameters).values())
                whole.setdefault(module, []).append((routed, attached.group))
            else:
                for layer in layers.of(attached.name, attached.site):
                    owned = _owned(attached.name, layer, attached.site, modules[layer])
                    own.setdefault(modules[layer], []).append((owned, attached.group))
    places: dict[nn.Parameter, tuple[Place, ...]] = {}
    for path, module in modules.items():
        around = [site for name in _ancestors(path) for site in whole.get(modules[name], ())]
        for name, parameter in private.own_tensors(module).items():
            if isinstance(parameter, nn.Parameter):
                of_one_unit = [(None, group) for routed, group in around if parameter in routed]
                place = (*of_one_unit, *((dims[name], group) for dims, group in own.get(module, ()) if name in dims))
                places[parameter] = tuple(dict.fromkeys((*places.get(parameter, ()), place)))
    return {parameter: used for parameter, used in places.items() if any(used)}


def _ancestors(path: str) -> Iterator[str]:
    """The names of a module and of those that it is in, the outermost first."""
    yield ""
    parts = path.split(".") if path else []
    for depth in range(1, len(parts) + 1):
        yield ".".join(parts[:depth])


def _is_whole(site: Site, module: nn.Module) -> bool:
    """Whether all that is in a module, of whatever kind, belongs to the site's one unit."""
    return site.is_whole and site.on == "output" and next(module.parameters(), None) is not None


def _owned(name: str, layer: str, site: Site, module: nn.Module) -> dict[str, int | None]:
    """The parameters of a layer that belong to a site's units, and the dimension of each that counts them."""
    only_upstream = site.on == "input" and site.level == "activations"
    dims = None if only_upstream else unit_dims(module, site.on)
    if dims is not None and site.parameters is not None:
        dims = {parameter: dim for parameter, dim in dims.items() if parameter in site.parameters}
    if not dims:
        why = (
            "it masks what the modules before it learn, and has none itself"
            if only_upstream
            else f"those of a {type(module).__name__} are not known"
        )
        raise SiteError(
            f"site {name!r}: no parameters are known to belong to its units alone: {why}. Put a site on the layer that "
            "writes the units, or leave this site out: sites=[...] with the names of the others."
        )
    if site.is_whole:
        return dict.fromkeys(dims)
    where = "" if layer == name else f" of {layer!r}, which writes its units,"
    if site.dim not in channel_dims(module):
        raise SiteError(
            f"site {name!r}: dim {site.dim} of the {site.on}{where or f' of a {type(module).__name__}'} need not be "
            f"the one that holds the units of its weights: expected dim={' or '.join(map(str, channel_dims(module)))}."
        )
    for parameter, dim in dims.items():
        size = getattr(module, parameter).shape[dim]
        if size != site.spec.width:
            raise SiteError(
                f"site {name!r}: the spec routes {site.spec.width} units, but the {parameter}{where} has {size} along "
                f"its dim {dim}."
            )
    return {**dims}
