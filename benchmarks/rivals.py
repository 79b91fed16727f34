"""The other ways to route, which gradroute is measured against. All give the same gradient."""

import torch
from torch import Tensor
from torch.nn import functional as F

from cases import Case, Routing, no_routing

OURS = "gradroute"
WHERE = "where, gathered mask"
NO_ROUTING = "no routing"
ONE_HOT = "detach, one-hot mask"
GATHERED = "detach, gathered mask"
SLICES = "detached slices"


def all_routings(case: Case) -> dict[str, Routing]:
    """All ways by name, ours first, checked to agree."""
    routings = {
        OURS: case.routed,
        NO_ROUTING: no_routing,
        WHERE: where_by_gathered_mask(case),
        ONE_HOT: detach_by_one_hot(case),
        GATHERED: detach_by_gathered_mask(case),
        SLICES: detach_slices(case),
    }
    expected = case.forward_and_backward(routings[OURS])
    for name, routing in routings.items():
        if name != NO_ROUTING and not torch.equal(case.forward_and_backward(routing), expected):
            raise RuntimeError(f"{name!r} computes another gradient, so its cost cannot be compared.")
    return routings


def where_by_gathered_mask(case: Case) -> Routing:
    """One line, exact for weights of 0 and 1, also of inf and NaN. The shape is known to who writes it, as here."""
    keep = _table(case) != 0
    ndim, dim, labeled = case.x.ndim, case.dim % case.x.ndim, case.labels.ndim
    if dim == ndim - 1 and labeled == ndim - 1:
        return lambda x, labels: torch.where(keep[labels], x, x.detach())
    if dim == labeled:
        place = (..., *[None] * (ndim - labeled - 1))
        return lambda x, labels: torch.where(keep[labels][place], x, x.detach())
    return lambda x, labels: torch.where(_aligned(keep[labels], x, case.dim), x, x.detach())


def detach_by_one_hot(case: Case) -> Routing:
    """The original's formula. With one unit per label the one-hot labels are the mask, else they select one."""
    table = _table(case)
    one_unit_per_label = torch.equal(table, torch.eye(len(table), dtype=table.dtype, device=table.device))

    def routing(x: Tensor, labels: Tensor) -> Tensor:
        one_hot = F.one_hot(labels, len(table)).to(x.dtype)
        mask = _aligned(one_hot if one_unit_per_label else one_hot @ table, x, case.dim)
        return mask * x + (1 - mask) * x.detach()

    return routing


def detach_by_gathered_mask(case: Case) -> Routing:
    """The original's formula with a mask looked up in a table."""
    table = _table(case)

    def routing(x: Tensor, labels: Tensor) -> Tensor:
        mask = _aligned(table[labels], x, case.dim)
        return mask * x + (1 - mask) * x.detach()

    return routing


def detach_slices(case: Case) -> Routing:
    """Label by label, the units that it may not teach are detached in place: in a copy, since x is the caller's."""
    outside = {label: _slices_outside(case.spec.indices(label), case.spec.width) for label in case.spec.labels}

    def routing(x: Tensor, labels: Tensor) -> Tensor:
        result = x.clone()
        units_last = result.movedim(case.dim, -1)
        for label, slices in outside.items():
            examples = labels == label
            for units in slices:
                units_last[examples, ..., units] = units_last[examples, ..., units].detach()
        return result

    return routing


def _table(case: Case) -> Tensor:
    """The masks in the dtype of x, made ahead of time: [n_labels, width]."""
    return case.spec.table[:-1].to(case.x.device, case.x.dtype)


def _aligned(mask: Tensor, x: Tensor, dim: int) -> Tensor:
    ones = [1] * (x.ndim - mask.ndim)
    return mask.view(*mask.shape[:-1], *ones, mask.shape[-1]).movedim(-1, dim)


def _slices_outside(units: tuple[int, ...], width: int) -> list[slice]:
    """What is left and right of consecutive units."""
    return [part for part in (slice(0, units[0]), slice(units[-1] + 1, width)) if part.start < part.stop]
