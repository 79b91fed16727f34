"""Operations in place: on a routed tensor they would write, without its gradients, to a tensor that a caller holds."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ... import _torch_private as private
from ...errors import SiteError
from ...spec._deferred_mask import BatchMask
from .._attachment import Hook
from .._nested import parts_of


def held_by_the_caller(x: Tensor, base: Tensor | None, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether a site's tensor is one of its module's arguments, or a view of one.

    Args:
        x: The tensor.
        base: What it is a view of, if it is one.
        args: The arguments by position.
        kwargs: The others.

    The caller may use it again. An in-place operation on the routed one would change the caller's values without its
    gradients, so that there the form is used on which such an operation raises.
    """
    for arg in args:  # a generator would not be traced
        if arg is x or (base is not None and private.is_of(arg, base)):
            return True
        if type(arg) is Tensor:
            continue
        parts = parts_of(arg)
        if len(parts) > 0 and held_by_the_caller(x, base, parts, {}):
            return True
    return len(kwargs) > 0 and held_by_the_caller(x, base, tuple(kwargs.values()), {})


def refuse_work_in_place(hook: Hook, module: nn.Module, masks: tuple[BatchMask, ...]) -> None:
    """A module that works in place on its input writes to a tensor that its caller still holds: see above."""
    if len(masks) == 0 or hook.routes_parameters:
        return
    if not torch.is_grad_enabled() and not masks[hook.group].silences:
        return
    if getattr(module, "inplace", False) is True:
        raise SiteError(
            f"site {hook.name!r}: this {type(module).__name__} works in place (inplace=True) on the input that is to "
            "be routed, and its caller may use that input again, unrouted. Build it with inplace=False, or put the "
            "site on the output of the module before it."
        )
