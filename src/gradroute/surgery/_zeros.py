"""`Zeros`: which entries of which weights are to be zero so that units are off for good."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Node

from .. import _torch_private as private
from .. import unit_dims as units
from ..errors import SiteError
from ..router._attachment import AttachedSite
from ..router._hooks import hooks_before, is_of_a_router
from ..router._nested import argument_names
from ..router._parameter_level import OwnForward
from ._plan import Cut, Plan
from ._resize import check_writable
from ._whole_modules import WholeModules
from .graph import _axis_rules as links
from .graph._exported import IDENTITIES, Program, argument, is_tensor, name_of
from .graph._propagation import Flow


class Zeros:
    """Finds the zeros, site by site: in the site's own layer, in a module as a whole, or by the model's program.

    Args:
        model: The model.

    Attributes:
        plan: The zeros.
        weights: What holds them, and the site whose module alone may read it.
        whole: The modules of which all may have to be zero.
    """

    def __init__(self, model: nn.Module) -> None:
        self.plan = Plan()
        self.weights: dict[Tensor, AttachedSite] = {}
        self.whole = WholeModules()
        self._model = model
        self._names = {tensor: name for name, tensor in [*model.named_parameters(), *model.named_buffers()]}
        self._others: list[tuple[str, int, Tensor]] = []
        self._unproven: list[AttachedSite] = []
        self._silent: list[nn.Module] = []

    def add(self, site: AttachedSite, keep: Tensor) -> str:
        """Add a site, with the units that stay; return why its own layer does not hold the zeros, "" if it does.

        Raises:
            SiteError: It holds them, and they cannot be written there.
        """
        own = _own_entries(site, ~keep)
        if isinstance(own, str):
            if len(keep) == 1 and site.site.on == "output" and next(site.module.parameters(), None) is not None:
                self.whole.add(site)
            else:
                self._others.append((site.name, site.site.axis, keep))
            return own
        self._check_private(site.module, [tensor for tensor, _ in own])
        self.plan.cuts += [Cut(self._names[tensor], dim, (~keep).expand(_size(tensor, dim))) for tensor, dim in own]
        self.weights |= {tensor: site for tensor, _ in own}
        return ""

    def add_whole_modules(self) -> None:
        """Add all parameters of the modules that are provably off without them; the others are left to `follow`.

        Raises:
            SiteError: They cannot be written there.
        """
        self._silent = self.whole.silent_if_zeroed()
        for module, sites in self.whole.sites.items():
            if module not in self._silent:
                self._unproven += sites
                continue
            tensors = list(dict.fromkeys(module.parameters()))
            self._check_private(module, tensors)
            everything = (torch.ones(_size(tensor, 0), dtype=torch.bool) for tensor in tensors)
            self.plan.cuts += [
                Cut(self._names[tensor], 0, mask) for tensor, mask in zip(tensors, everything, strict=True)
            ]
            self.weights |= dict.fromkeys(tensors, sites[0])

    def follow(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Add, by the model's program, what is to change for sites whose own modules do not hold the zeros.

        Raises:
            SiteError: It is not known what.
        """
        off = torch.zeros(1, dtype=torch.bool)
        sites = [*self._others, *((site.name, site.site.axis, off) for site in self._unproven)]
        if not sites:
            return
        silent = [self.whole.sites[module][0].name for module in self._silent]
        try:
            _find_others(Program(self._model, args, kwargs, sites, silent), self.plan)
        except SiteError as error:
            if not self._unproven:
                raise
            name, kind = self._unproven[0].name, type(self._unproven[0].module).__name__
            raise SiteError(
                f"site {name!r}: zeros in all parameters of this {kind} are not known to make 0 of every input, as "
                f"with a residual connection in it, and neither can they be put elsewhere: {error} Or take the module "
                "out, as contract does, which needs no zeros."
            ) from error

    def _check_private(self, within: nn.Module, tensors: Sequence[Tensor]) -> None:
        """Refuse tensors that others hold than a module, and what is in it."""
        inside = set(within.modules())
        for tensor in tensors:
            owners = {
                f"{name}.{key}" if name else key: module in inside
                for name, module in self._model.named_modules()
                for key, held in private.own_tensors(module).items()
                if held is tensor
            }
            if not all(owners.values()):
                raise SiteError(
                    f"the units' weights are tied: {' and '.join(map(repr, owners))} are one tensor, so zeros for the "
                    "one would change the other too. Untie them first, by a copy of the parameter."
                )


def _own_entries(attached: AttachedSite, mask: Tensor) -> list[tuple[Tensor, int]] | str:
    """The entries of the site's own module that are to be zero; or why that is not the same as ablating."""
    module, site = attached.module, attached.site
    kind, why = type(module).__name__, ""
    dims = units.unit_dims(module, site.on)
    linear = isinstance(module, (nn.Linear, *units.CONVOLUTIONS, *units.TRANSPOSED_CONVOLUTIONS))
    first = tuple(argument_names(module)[:1])
    if not dims:
        why = f"of a {kind} no weights are known that make or read the units of its {site.on} alone"
    elif site.on == "input" and not linear and not units.is_conv1d_of_transformers(module):
        why = f"a {kind} does more with its input than weigh it, so that no weights of 0 stand for an input of 0"
    elif getattr(module, "max_norm", None) is not None:
        why = f"a {kind} with max_norm scales each unit by the norm of all"
    elif site.path and not (site.on == "input" and site.path in ((0,), first)):
        why = f"index={site.index!r} leads to a part of its {site.on}"
    elif not site.is_whole and site.dim not in units.channel_dims(module):
        why = f"dim={site.dim} may be another dimension of its {site.on} than that of the units"
    elif not site.is_whole and units.n_units(module, site.on) != len(mask):
        why = f"its {site.on} has {units.n_units(module, site.on)} units along another dimension than dim={site.dim}"
    elif _is_edited_besides(attached):
        why = f"another hook or forward method may edit its {site.on} between the weights and the site"
    if why or dims is None:
        return why
    for name in dims:
        check_writable(module, name)
    return [(getattr(module, name), dim) for name, dim in dims.items()]


def _is_edited_besides(attached: AttachedSite) -> bool:
    """Whether somebody else's code runs between a site's hook and the forward pass of the module's class."""
    if not isinstance(vars(attached.module).get("forward"), OwnForward | None):
        return True
    return not all(is_of_a_router(other) for other in hooks_before(attached))


def _size(tensor: Tensor, dim: int) -> int:
    return tensor.shape[dim] if tensor.ndim else 1


def _find_others(program: Program, plan: Plan) -> None:
    """Add what is to change for sites whose own modules do not hold the weights."""
    for seed in list(program.seeds):
        made = _made_by(program, seed)
        if made:
            plan.cuts += made
            del program.seeds[seed]
    if program.seeds:
        found = Flow(program).plan()
        # Zeros where the units are made and where they are read: what is between, such as a norm's mean, may stay.
        plan.cuts += [cut for cut in found.cuts if cut.name not in program.buffers]
        plan.folds += found.folds


def _made_by(program: Program, seed: Node) -> list[Cut]:
    """The entries that make the units of a site, where zeros there make every one of its units exactly 0; or none."""
    node = argument(seed, 1)
    dim, keep = program.seeds[seed]
    mask = ~keep
    while sum(user.meta.get("val") is not None for user in node.users) == 1:
        if name_of(node) in _MAKERS:
            return _rows(program, node, dim, mask)
        tensors = [operand for operand in node.all_input_nodes if is_tensor(operand)]
        if len(tensors) != 1 or not _keeps_zero(node):
            break
        try:
            edges = [edge for edge in links.edges(node) if edge.b is node]
            found = [axis for edge in edges if (axis := edge.back(dim, mask)) is not None]
        except SiteError:
            break
        if len(found) != 1:
            break
        (dim, mask), node = found[0], tensors[0]
    return []


# For each operation that makes units: the argument, and its dimension, that is to be 0 for them to be.
_MAKERS = {
    **{name: ((linear.weight, linear.makes), (linear.bias, 0)) for name, linear in links.LINEAR.items()},
    "embedding": ((0, 1),),
    "batch_norm": ((1, 0), (2, 0)),
}


def _rows(program: Program, node: Node, dim: int, mask: Tensor) -> list[Cut]:
    """The weight rows and biases of one operation that make some of its units; none where they are no parameters."""
    channel = 1 if name_of(node) == "batch_norm" else links.channel_of(node)
    operands = [(argument(node, position), own) for position, own in _MAKERS[name_of(node)]]
    cuts = []
    for operand, own in operands if dim == channel else ():
        if operand is None and name_of(node) != "batch_norm":
            continue  # a layer without a bias
        name = None if operand is None else program.names.get(operand.name)
        if name is None or len(operand.users) > 1 or operand.meta["val"].shape[own] != len(mask):
            return []
        cuts.append(Cut(name, own, mask))
    return cuts


def _keeps_zero(node: Node) -> bool:
    """Whether an operation on one tensor makes 0 of 0, and treats each entry by itself or only moves it."""
    if name_of(node) in IDENTITIES | links.VIEWS | links.TRANSPOSES:
        return True
    if name_of(node) not in links.POINTWISE:
        return False
    zero = torch.fx.map_arg(node.args, lambda operand: torch.zeros(1))
    return bool((node.target(*zero, **node.kwargs) == 0).all())  # type: ignore[operator]
