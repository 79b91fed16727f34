"""Clipping of gradients for each route by itself."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Hashable
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from ..errors import UsageError, preview
from ..router._attachment import attachment_of
from ..router._router import Router
from ._parameter_units import Place, places_of


@torch.no_grad()
def clip_grad_norm_per_route_(
    router: Router,
    max_norm: float,
    norm_type: float = 2.0,
    *,
    error_if_nonfinite: bool = False,
    sites: Collection[str] | None = None,
) -> dict[tuple[Hashable, ...], Tensor]:
    """Clip the gradients of each route by a norm of its own, so that a spike in one does not shrink another's step.

    `torch.nn.utils.clip_grad_norm_` scales all gradients by one number. Here the entries of parameters are grouped by
    the set of labels that may teach them, and each group is clipped as if there were no other: the entries that only
    label a may teach, those that only b may, those that both may. What belongs to no units (see `Isolation`) any label
    may teach: it is one group with the units that all labels may teach. Unlabeled data is left out of account.

    A group of one label is thus out of reach of the other labels' gradients. What labels share is not: there a spike
    shrinks what the others contribute, as it does without routing.

    Args:
        router: The router of the model whose gradients are clipped, in place. Its sites must name the same labels.
            Under a `GradScaler`, ``scaler.unscale_(optimizer)`` comes first, as for torch's own clipping.
        max_norm: The largest norm that each group keeps.
        norm_type: The p of the p-norm, positive; may be ``float("inf")``.
        error_if_nonfinite: Whether to raise where a group's norm is inf or NaN. If not, the damage stays in that group.
        sites: As for `Isolation`.

    Returns:
        The norm of each group before clipping, a tensor of shape (), by the labels of the group in their order. A group
        without gradients has norm 0.

    Raises:
        SiteError: As `Isolation`.
        UsageError: The sites name different labels, `norm_type` is not positive, or the gradients are distributed
            tensors.
        RuntimeError: As in `torch.nn.utils.clip_grad_norm_`: a norm is not finite and `error_if_nonfinite` is set.

    Examples:
        >>> import torch, gradroute as gr
        >>> model = torch.nn.Linear(1, 2, bias=False)
        >>> router = gr.Router(model, {"": gr.RoutingSpec({"retain": 0, "forget": 1}, 2)})
        >>> with router(torch.tensor([0, 1])):
        ...     model(torch.tensor([[0.5], [1000.0]])).sum().backward()
        >>> norms = clip_grad_norm_per_route_(router, max_norm=1.0)
        >>> norms[("retain",)], norms[("forget",)]
        (tensor(0.5000), tensor(1000.))
        >>> model.weight.grad
        tensor([[0.5000],
                [1.0000]])

    References:
        Clipping by the norm: Pascanu, Mikolov and Bengio, "On the difficulty of training recurrent neural networks",
        2013 (arXiv:1211.5063).
    """
    norm_type = float(norm_type)
    if not norm_type > 0:
        raise UsageError(f"norm_type must be positive, such as 2.0 or inf; got {norm_type}.")
    places = places_of(router, sites)
    partition = _partition(router)
    groups = {parameter: partition.groups(used) for parameter, used in places.items()}
    learning = {parameter: parameter.grad for parameter in router.model.parameters() if parameter.grad is not None}
    for gradient in learning.values():
        if type(gradient) not in (Tensor, nn.Parameter) or gradient.layout != torch.strided:
            raise UsageError(
                f"a gradient is a {type(gradient).__name__} of layout {gradient.layout}: only plain, dense gradients "
                "can be clipped per route."
            )
    shared = [gradient for parameter, gradient in learning.items() if parameter not in groups]
    dtype, device = torch.float32, torch.device("cpu")
    for gradient in learning.values():
        dtype, device = torch.promote_types(dtype, gradient.dtype), gradient.device
    powers = torch.zeros(len(partition.names), dtype=dtype, device=device)
    if shared:
        total = nn.utils.get_total_norm(shared, norm_type).to(powers)
        _accumulate(powers, torch.zeros(1, dtype=torch.int64, device="cpu"), total, norm_type)
    for parameter, (dims, numbers) in groups.items():
        if parameter in learning:
            norms = _norms_along(learning[parameter], dims, norm_type, dtype)
            _accumulate(powers, numbers, norms.to(device), norm_type)
    totals = powers if norm_type == torch.inf else powers ** (1 / norm_type)
    if error_if_nonfinite and not bool(totals.isfinite().all()):
        bad = [name for name, finite in zip(partition.names, totals.isfinite().tolist(), strict=True) if not finite]
        raise RuntimeError(
            f"the norm of order {norm_type} of the gradients of the routes {preview(bad, 3)} is not finite, so they "
            "cannot be clipped. To scale them by it anyway, pass error_if_nonfinite=False."
        )
    scales = (max_norm / (totals + 1e-6)).clamp(max=1.0)  # as torch does: an empty group is not divided by 0
    nn.utils.clip_grads_with_norm_([p for p in learning if p not in groups], max_norm, totals[0])
    for parameter, (dims, numbers) in groups.items():
        if parameter in learning:
            gradient = learning[parameter]
            shape = [size if dim in dims else 1 for dim, size in enumerate(gradient.shape)]
            factor = scales.to(gradient.device)[numbers.to(gradient.device)]
            gradient.mul_(factor.view(shape).to(gradient.dtype))
    return dict(zip(partition.names, totals.unbind(), strict=True))


def _norms_along(gradient: Tensor, dims: list[int], norm_type: float, dtype: torch.dtype) -> Tensor:
    """The norm of what belongs to each combination of units: a tensor over the dimensions that count units."""
    others = [dim for dim in range(gradient.ndim) if dim not in dims]
    if not others:
        return gradient.abs().to(dtype)
    return torch.linalg.vector_norm(gradient, norm_type, dim=others, dtype=dtype)  # type: ignore[no-any-return]


def _accumulate(powers: Tensor, numbers: Tensor, norms: Tensor, norm_type: float) -> None:
    """Add norms to the p-th powers of the norms of their groups (with p = inf, to the norms themselves)."""
    numbers, norms = numbers.to(powers.device).flatten(), norms.flatten()
    if norm_type == torch.inf:
        powers.scatter_reduce_(0, numbers, norms, "amax")
    else:
        powers.index_add_(0, numbers, norms**norm_type)


class _Partition:
    """The entries of parameters, in groups by the set of labels that may teach them.

    Attributes:
        names: The labels of each group. The first is the group of all labels.
    """

    def __init__(self, router: Router) -> None:
        specs = [group.spec for group in attachment_of(router).groups]
        # Labels that teach the same units at all sites are one kind: 50,000 token labels may be of two.
        rows = torch.stack([spec.masks.row_of_label[:-1] for spec in specs])
        rows, kind_of_label = rows.unique(dim=1, return_inverse=True)  # type: ignore[no-untyped-call]
        self._teaches = [spec.masks.rows[row] != 0 for spec, row in zip(specs, rows, strict=True)]  # [n_kinds, width]
        self._labels = list(zip(specs[0].labels, kind_of_label.tolist(), strict=True))
        self._n_kinds = rows.shape[1]
        self._numbers: dict[tuple[bool, ...], int] = {}
        self._found: dict[tuple[Place, ...], tuple[list[int], Tensor]] = {}
        self.names: list[tuple[Hashable, ...]] = []
        self._number(torch.ones(self._n_kinds, dtype=torch.bool, device="cpu"))

    def groups(self, places: tuple[Place, ...]) -> tuple[list[int], Tensor]:
        """The dimensions of a parameter that count units, and over these, the number of the group of each entry."""
        if places not in self._found:
            dims = list(dict.fromkeys(dim for place in places for dim, _ in place))
            dims.sort(key=lambda dim: -1 if dim is None else dim)
            patterns, pattern_of_unit = zip(*(self._patterns(places, dim) for dim in dims), strict=True)
            numbers = [self._number(torch.stack(choice).all(0).any(0)) for choice in itertools.product(*patterns)]
            table = torch.tensor(numbers, device="cpu").view([len(pattern) for pattern in patterns])
            table = table[torch.meshgrid(*pattern_of_unit, indexing="ij")]
            # Along None there is one unit, which has no dimension in the parameter.
            of_units = [dim for dim in dims if dim is not None]
            self._found[places] = of_units, table.view(table.shape[len(dims) - len(of_units) :])
        return self._found[places]

    def _patterns(self, places: tuple[Place, ...], dim: int | None) -> tuple[Tensor, Tensor]:
        """Which kinds of labels teach through which place: the distinct [n_places, n_kinds], and that of each unit."""
        teaches = [[self._teaches[group] for d, group in place if d == dim] for place in places]
        width = next(here[0].shape[1] for here in teaches if here)
        everything = torch.ones(self._n_kinds, width, dtype=torch.bool, device="cpu")
        by_unit = torch.stack([torch.stack([everything, *here]).all(0) for here in teaches], 1).permute(2, 1, 0)
        return by_unit.unique(dim=0, return_inverse=True)  # type: ignore[no-any-return, no-untyped-call]

    def _number(self, kinds: Tensor) -> int:
        key = tuple(kinds.tolist())
        if key not in self._numbers:
            self._numbers[key] = len(self.names)
            self.names.append(tuple(label for label, kind in self._labels if key[kind]))
        return self._numbers[key]


# Found once for each router: a model with many labels takes milliseconds.
_PARTITIONS: WeakKeyDictionary[Router, _Partition] = WeakKeyDictionary()


def _partition(router: Router) -> _Partition:
    attachment = attachment_of(router)
    if attachment.disagreeing:
        raise UsageError(
            f"the sites {attachment.groups[0].pattern!r} and {attachment.disagreeing[0]!r} name different labels, so "
            "there is no one set of routes to clip: attach a router for each."
        )
    if router not in _PARTITIONS:
        _PARTITIONS[router] = _Partition(router)
    return _PARTITIONS[router]
