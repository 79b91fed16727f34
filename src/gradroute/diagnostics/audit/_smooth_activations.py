"""`Softened`: lets ReLUs pass a part of everything, so that experiments see units that are off, too."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

_KINKS = {
    *(F.relu, torch.relu, torch.Tensor.relu, torch.relu_, torch.Tensor.relu_),
    *(F.relu6, F.hardtanh, F.hardtanh_, F.hardswish, F.hardsigmoid, F.threshold, torch.threshold, torch.threshold_),
    *(torch.clamp, torch.Tensor.clamp, torch.clamp_, torch.Tensor.clamp_),
    *(torch.clamp_min, torch.Tensor.clamp_min, torch.clamp_min_, torch.Tensor.clamp_min_),
    *(torch.clamp_max, torch.Tensor.clamp_max, torch.clamp_max_, torch.Tensor.clamp_max_),
}
_SLOPE = 0.25


class Softened(TorchFunctionMode):
    """``with Softened()``: ReLUs, clamps and their like pass a quarter of what they would cut off.

    The outputs are other ones then, but what depends on what is the same. So an experiment sees a unit that happens to
    be off in all examples of a batch, too.
    """

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if function not in _KINKS or not args or not isinstance(args[0], Tensor) or not args[0].is_floating_point():
            return function(*args, **kwargs)
        x, *rest = args
        copy = x.clone()
        kinked = function(copy, *rest, **kwargs)
        soft = kinked + _SLOPE * (x - kinked)
        return x.copy_(soft) if kinked is copy else soft  # in place where the function is
