"""References for the tests, written from the definitions and without the library's tensor code."""

import torch
from torch import Tensor

from gradroute import UNLABELED, Route, RoutingSpec


def row(spec: RoutingSpec, label) -> list[float]:
    """The mask of one label, or of unlabeled data, unit by unit."""
    rule = spec.unlabeled if label == UNLABELED else spec.routes[label]
    if isinstance(rule, Route):
        own = rule.units(spec.width)
        return [
            rule.weight if unit in own else 1.0 if unit in spec.shared else rule.elsewhere for unit in range(spec.width)
        ]
    return [{"all": 1.0, "none": 0.0, "shared": float(unit in spec.shared)}[rule] for unit in range(spec.width)]


def union(spec: RoutingSpec, chosen) -> list[float]:
    """The mask of a set of labels: per unit the weight of largest magnitude, the positive one of two equal ones."""
    if not chosen:
        return row(spec, UNLABELED)
    return [
        max(weights, key=lambda w: (abs(w), w)) for weights in zip(*(row(spec, label) for label in chosen), strict=True)
    ]


def mixture(spec: RoutingSpec, amounts) -> list[float]:
    """The mask of a mixture of labels: the weighted sum of their masks."""
    rows = [row(spec, label) for label in spec.labels]
    return [sum(a * r[unit] for a, r in zip(amounts, rows, strict=True)) for unit in range(spec.width)]


def mask(spec: RoutingSpec, labels: Tensor) -> Tensor:
    """``spec.mask(labels)``, one entry at a time."""
    if labels.dtype == torch.bool:
        entries = labels.reshape(-1, labels.shape[-1]).tolist()
        rows = [union(spec, [label for label, on in zip(spec.labels, entry, strict=True) if on]) for entry in entries]
        shape = labels.shape[:-1]
    elif labels.dtype.is_floating_point:
        rows = [mixture(spec, entry) for entry in labels.reshape(-1, labels.shape[-1]).tolist()]
        shape = labels.shape[:-1]
    else:
        integer_keys = all(isinstance(label, int) for label in spec.labels)
        names = [x if x == UNLABELED or integer_keys else spec.labels[x] for x in labels.reshape(-1).tolist()]
        rows = [row(spec, name) for name in names]
        shape = labels.shape
    return torch.tensor(rows, dtype=torch.float32).reshape(*shape, spec.width)


def along(mask: Tensor, ndim: int, dim: int) -> Tensor:
    """A mask of shape ``labels.shape + (width,)``, shaped to broadcast against a tensor routed along `dim`."""
    filled = mask.reshape(*mask.shape[:-1], *[1] * (ndim - mask.ndim), mask.shape[-1])
    return filled.movedim(-1, dim)


def oracle(x: Tensor, mask: Tensor) -> Tensor:
    """x, whose gradient passes only where a hard mask is on, by the textbook formula."""
    return torch.where(mask.bool(), x, x.detach())


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors agree bit for bit, NaNs and signed zeros included."""
    integer = {2: torch.int16, 4: torch.int32, 8: torch.int64}[a.dtype.itemsize]
    return (
        a.shape == b.shape
        and a.dtype == b.dtype
        and torch.equal(a.contiguous().view(integer), b.contiguous().view(integer))
    )
