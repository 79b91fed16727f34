"""DTensors, of which each process holds a part, or a summand: what a process holds is masked where it is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import RoutingError


class HeldPart:
    """What this process holds of a DTensor.

    A mask multiplies entry by entry, so that the part of the product is the product of the parts, and a sum of masked
    summands is the masked sum: no process needs what another one holds.

    Attributes:
        local: What is held.
        starts: Where in the whole tensor it begins, along each dimension.

    Raises:
        RoutingError: It is no rectangle of the whole tensor, or no summand of it.
    """

    def __init__(self, whole: Any) -> None:
        self._whole = whole
        with torch.no_grad():
            self.local: Tensor = whole.to_local()
        starts, sizes = [0] * whole.ndim, list(whole.shape)
        for axis, placement in enumerate(whole.placements):
            kind = type(placement).__name__
            if kind == "Shard":  # as torch.chunk divides it, one axis of the mesh after the other
                dim, mesh = placement.dim % whole.ndim, whole.device_mesh
                chunk = -(-sizes[dim] // mesh.size(axis))
                start = min(chunk * mesh.get_local_rank(axis), sizes[dim])
                starts[dim] += start
                sizes[dim] = min(chunk, sizes[dim] - start)
            elif not (placement.is_replicate() or (placement.is_partial() and kind in _SUMS and _adds_up(placement))):
                raise RoutingError(
                    f"a DTensor placed as {whole.placements} cannot be routed: expected Shard, Replicate, or Partial "
                    "sums. Redistribute it before."
                )
        if tuple(sizes) != tuple(self.local.shape):
            raise RoutingError(
                f"a DTensor of shape {tuple(whole.shape)} placed as {whole.placements} should have a part of shape "
                f"{tuple(sizes)} in this process, and has {tuple(self.local.shape)}: it was put together of unequal "
                "parts, for which DTensor.from_local needs shape= and stride=; or make the size of the dimension a "
                "multiple of the number of processes."
            )
        self.starts: Sequence[int] = starts

    def cut(self, mask: Tensor) -> Tensor:
        """The part of a mask that broadcasts to the whole tensor."""
        lead = self._whole.ndim - mask.ndim
        for dim in range(mask.ndim):
            size = self.local.shape[lead + dim]
            if mask.shape[dim] not in (1, size):
                mask = mask.narrow(dim, self.starts[lead + dim], size)
        return mask

    def replaced_by(self, local: Tensor) -> Tensor:
        """A DTensor like the whole one, of which this process holds another part of the same shape."""
        from torch.distributed.tensor import DTensor  # noqa: PLC0415  # who holds one has imported it

        whole, stride = self._whole, self._whole.stride()
        if local.stride() != self.local.stride():
            local, stride = local.contiguous(), torch.empty(whole.shape, device="meta").stride()
        return DTensor.from_local(
            local, whole.device_mesh, whole.placements, run_check=False, shape=whole.shape, stride=stride
        )


_SUMS = ("Partial", "_MaskPartial", "MaskPartial")  # the others: of an embedding whose rows are divided


def _adds_up(placement: Any) -> bool:
    return placement.reduce_op in ("sum", "avg")


def on_mesh_of(like: Any, mask: Tensor) -> Tensor:
    """A mask as a DTensor, for where Dynamo traces, whose graph the parts would break: it multiplies DTensors alone."""
    from torch.distributed.tensor import DTensor, Replicate  # noqa: PLC0415  # as above

    mesh = like.device_mesh
    return DTensor.from_local(mask, mesh, [Replicate()] * mesh.ndim, run_check=False)
