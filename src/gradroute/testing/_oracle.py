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
        integer_keys = all(isinstance(label, int) for label in spec.labels)
        names = [x if x == UNLABELED or integer_keys else spec.labels[x] for x in labels.reshape(-1).tolist()]
        rows = [oracle_row(spec, name) for name in names]
    return torch.tensor(rows, dtype=torch.float32).reshape(*shape, spec.width)


def oracle_row(spec: RoutingSpec, label: Hashable) -> list[float]:
    """The mask of one label, or of unlabeled data, unit by unit."""
    rule = spec.unlabeled if label == UNLABELED else spec.routes[label]
    units = range(spec.width)
    if not isinstance(rule, Route):
        return [{"all": 1.0, "none": 0.0, "shared": float(unit in spec.shared)}[rule] for unit in units]
    own = rule.units(spec.width)
    return [rule.weight if unit in own else 1.0 if unit in spec.shared else rule.elsewhere for unit in units]


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
    return masked(x, along(oracle_mask(spec, labels), x.ndim, dim))


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
