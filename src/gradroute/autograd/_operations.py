"""What the Functions do, put together from ordinary operations: for compiled code of torch before 2.12.

There Dynamo traces a Function without its backward inside of `torch.func` transforms, and the mask is lost without a
word. Of ordinary operations every compiler and every transform knows the gradient.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _torch_private as private


def masked(x: Tensor, mask: Tensor, *, replacing: bool) -> Tensor:
    """As `RouteMask`; with ``replacing=True`` as `ReplacingRouteMask`.

    But a weight other than 0 and 1 teaches nothing through an entry of x that is inf or NaN.

    Raises:
        UsageError: x is a DTensor.
    """
    _refuse_dtensors(x)
    fixed = x.detach()
    part = x
    if mask.dtype != torch.bool:
        # Whatever is subtracted is +0, which changes no value, and no -0 either.
        zero = torch.where(mask < 0, x - fixed, fixed - x)
        part = fixed - mask.abs().to(x.dtype) * torch.where(torch.isfinite(fixed), zero, 0)
    result = torch.where(mask != 0, part, fixed)
    # One of several views at once: to work in place on it raises, as on the view that `RouteMask` returns.
    return result if replacing else result.unsqueeze(0).unbind(0)[0]


def summed(value: Tensor, *parts: Tensor) -> Tensor:
    """As `Sum`. But nothing is learned through an entry of a part that is inf or NaN.

    Raises:
        UsageError: The value is a DTensor.
    """
    _refuse_dtensors(value)
    for part in parts:
        fixed = part.detach()
        value = value - torch.where(torch.isfinite(fixed), fixed - part, 0)
    return value


def _refuse_dtensors(x: Tensor) -> None:
    if private.is_distributed(x):
        from . import _refused  # noqa: PLC0415  # runs while Dynamo traces: see there

        _refused.refuse_dtensors()
