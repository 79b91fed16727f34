"""The oracle: what a mask is, entry by entry, and what routing means, in operations that autograd knows."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import torch
from torch import Tensor, nn

from ..spec._masks import UNLABELED
from ..spec._route import Route
from ..spec._spec import RoutingSpec


def oracle_mask(spec: RoutingSpec, labels: Tensor) -> Tensor:
    """``spec.mask(labels)``, from the definition and one entry at a time: float32, of the labels' shape and the width.

    Examples:
        >>> oracle_mask(RoutingSpec.one_per_label(2), torch.tensor([1, -1]))
        tensor([[0., 1.],
                [1., 1.]])
    """
    if labels.dtype == torch.bool:
        entries, shape = labels.reshape(-1, labels.shape[-1]).tolist(), labels.shape[:-1]
        rows = [_union(spec, [label for label, on in zip(spec.labels, entry, strict=True) if on]) for entry in entries]
    elif labels.is_floating_point():
        entries, shape = labels.reshape(-1, labels.shape[-1]).tolist(), labels.shape[:-1]
        rows = [_mixture(spec, entry) for entry in entries]
    else:
        shape = labels.shape
        rows = [oracle_row(spec, name) for name in _names(spec, labels)]
    return torch.tensor(rows, dtype=torch.float32).reshape(*shape, spec.width)


def oracle_silent(spec: RoutingSpec, labels: Tensor) -> Tensor:
    """``spec.silent_mask(labels)``, from the definition and one entry at a time.

    Examples:
        >>> oracle_silent(RoutingSpec.one_per_label(2, silent="others"), torch.tensor([1, -1]))
        tensor([[ True, False],
                [False, False]])
    """
    entries, shape = labels, labels.shape
    if labels.dtype == torch.bool or labels.is_floating_point():
        entries, shape = labels.reshape(-1, labels.shape[-1]) != 0, labels.shape[:-1]
        present = [[label for label, has in zip(spec.labels, row, strict=True) if has] for row in entries.tolist()]
    else:
        present = [[name] for name in _names(spec, labels)]
    rows = []
    for labels_of_one in present:
        silent = [oracle_silent_row(spec, label) for label in labels_of_one or [UNLABELED]]
        rows.append([all(off) for off in zip(*silent, strict=True)])
    return torch.tensor(rows, dtype=torch.bool).reshape(*shape, spec.width)


def oracle_silent_row(spec: RoutingSpec, label: Hashable) -> list[bool]:
    """Which units are off for the examples of one label, or unlabeled ones: those that certain labels alone teach."""
    if label not in spec.silent:
        return [False] * spec.width
    named = spec.silent[label]
    silent = [other for other in spec.labels if other != label] if named == "others" else list(named)

    def taught(unit: int, by: list[Hashable]) -> bool:
        return any(spec.routes[one].weight != 0 and unit in spec.indices(one) for one in by)

    speaking = [other for other in spec.labels if other not in silent]
    units = range(spec.width)
    return [taught(u, silent) and not taught(u, speaking) and u not in spec.shared for u in units]


def _names(spec: RoutingSpec, labels: Tensor) -> list[Hashable]:
    """The labels that an integer tensor holds, one after the other."""
    integer_keys = all(isinstance(label, int) for label in spec.labels)
    return [x if x == UNLABELED or integer_keys else spec.labels[x] for x in labels.reshape(-1).tolist()]


def oracle_row(spec: RoutingSpec, label: Hashable) -> list[float]:
    """The mask of one label, or of unlabeled data, unit by unit."""
    rule = spec.unlabeled if label == UNLABELED else spec.routes[label]
    units = range(spec.width)
    if isinstance(rule, Route):
        own = rule.units(spec.width)
        row = [rule.weight if unit in own else 1.0 if unit in spec.shared else rule.elsewhere for unit in units]
    else:
        row = [{"all": 1.0, "none": 0.0, "shared": float(unit in spec.shared)}[rule] for unit in units]
    return [0.0 if off else weight for off, weight in zip(oracle_silent_row(spec, label), row, strict=True)]


def _union(spec: RoutingSpec, chosen: Sequence[Hashable]) -> list[float]:
    """Unit by unit the weight of largest magnitude, the positive one of two equal ones."""
    rows = [oracle_row(spec, label) for label in chosen] or [oracle_row(spec, UNLABELED)]
    return [max(weights, key=lambda weight: (abs(weight), weight)) for weights in zip(*rows, strict=True)]


def _mixture(spec: RoutingSpec, amounts: Sequence[float]) -> list[float]:
    """The weighted sum of the labels' rows."""
    rows = [oracle_row(spec, label) for label in spec.labels]
    return [sum(a * row[unit] for a, row in zip(amounts, rows, strict=True)) for unit in range(spec.width)]


def along(mask: Tensor, ndim: int, dim: int) -> Tensor:
    """A mask of shape ``labels.shape + (width,)``, shaped to broadcast against a tensor that is routed along `dim`."""
    return mask.reshape(*mask.shape[:-1], *[1] * (ndim - mask.ndim), mask.shape[-1]).movedim(-1, dim)


def masked(x: Tensor, mask: Tensor) -> Tensor:
    """A finite x, whose gradient is multiplied by a mask that broadcasts to it."""
    mask = mask.to(x.device, x.dtype)
    return stopped(x, mask) if bool(((mask == 0) | (mask == 1)).all()) else scaled(x, mask)


def silenced(x: Tensor, off: Tensor) -> Tensor:
    """x, and 0 in the units that are off."""
    return torch.where(off.to(x.device), torch.zeros((), dtype=x.dtype, device=x.device), x)


def stopped(x: Tensor, mask: Tensor) -> Tensor:
    """The value of x, with a gradient only where the mask is not 0."""
    return torch.where(mask != 0, x, x.detach())


def scaled(x: Tensor, mask: Tensor) -> Tensor:
    """The value of x up to rounding, with its gradient times the mask."""
    return torch.where((mask == 0) | (mask == 1), stopped(x, mask), x.detach() + mask * (x - x.detach()))


def oracle(x: Tensor, labels: Tensor, spec: RoutingSpec, *, dim: int = -1) -> Tensor:
    """What `gradroute.route` means, in operations that autograd knows: for finite x.

    Examples:
        >>> x = torch.ones(1, 2, requires_grad=True)
        >>> oracle(x, torch.tensor([0]), RoutingSpec.one_per_label(2)).sum().backward()
        >>> x.grad
        tensor([[1., 0.]])
    """
    routed = masked(x, along(oracle_mask(spec, labels), x.ndim, dim))
    return silenced(routed, along(oracle_silent(spec, labels), x.ndim, dim)) if spec.silent else routed


def closed_entries(loss: Tensor, model: nn.Module) -> dict[str, Tensor | None]:
    """Which entries of each parameter are closed by masks: where a NaN that starts at the loss never arrives.

    A NaN goes wherever a gradient goes, whatever it is multiplied with or added to, and only `torch.where` stops it:
    the masks of the oracle. So a gradient that is 0 by mathematics, and some 1e-10 in floating point, is not taken for
    a closed one: that of the bias of attention's keys, which softmax does not see, or of terms that cancel out.

    Args:
        loss: A scalar whose graph was kept (``retain_graph=True``) and is routed by `masked`.
        model: Whose parameters; their gradients stay as they are.

    Returns:
        For each parameter a bool tensor of its shape; None where no path leads to it at all.

    Examples:
        >>> layer = nn.Linear(1, 2)
        >>> routed = oracle(layer(torch.ones(1, 1)), torch.tensor([0]), RoutingSpec.one_per_label(2))
        >>> closed_entries(routed.sum(), layer)["bias"]
        tensor([False,  True])
    """
    kept = {parameter: parameter.grad for parameter in model.parameters()}
    for parameter in kept:
        parameter.grad = None
    with torch.autograd.set_detect_anomaly(False):
        torch.autograd.backward(loss, torch.full_like(loss, torch.nan))
    closed = {name: None if p.grad is None else p.grad.to_dense() == 0 for name, p in model.named_parameters()}
    for parameter, gradient in kept.items():
        parameter.grad = gradient
    return closed
