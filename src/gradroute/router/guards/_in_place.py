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


def held_by_the_caller(x: Tensor, given: tuple[tuple[Any, ...], dict[str, Any]]) -> bool:
    """Whether a site's tensor is one of its module's arguments, or a view of one.

    The caller may use it again. An in-place operation on the routed one would change the caller's values without its
    gradients, so that there the form is used on which such an operation raises.
    """
    args, kwargs = given
    alias_of = private.base(x)
    for arg in args:  # a generator would not be traced
        if arg is x or (alias_of is not None and private.is_of(arg, alias_of)):
            return True
        if type(arg) is Tensor:
            continue
        parts = parts_of(arg)
        if len(parts) > 0 and held_by_the_caller(x, (parts, {})):
            return True
    return len(kwargs) > 0 and held_by_the_caller(x, (tuple(kwargs.values()), {}))


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
