"""At level "parameters" a stand-in for the module's forward routes: a forward that came in its place later does not."""

from __future__ import annotations

import torch
from torch import nn

from ...errors import UsageError
from .._attachment import AnySite, Hook
from .._checkpointing import Pass, current_compiled_pass, current_pass
from .._compiled import CHECKS, CompiledSite, ask_when_it_runs
from .._parameter_level import stand_in


def refuse_replaced_forward(hook: Hook, module: nn.Module) -> None:
    """At level "parameters" it is the stand-in for the module's forward that routes: a pass without it is unrouted."""
    if not hook.routes_parameters:
        return
    if torch.compiler.is_compiling():
        if len(hook.state.masks) > 0:
            ask_when_it_runs("reached", hook)
        return
    reached = _take_reached(hook)
    standing = stand_in(module)
    if standing is not None and standing.module is not module:
        raise UsageError(
            f"site {hook.name!r}: this {type(module).__name__} is a shallow copy, and its forward is that of the "
            "module it was copied from, on that one's parameters: copy.copy and nn.DataParallel make such copies. Use "
            "copy.deepcopy((model, router)), DistributedDataParallel, or level='activations'."
        )
    if hook.state.masks and not reached and current_pass().kind is not Pass.SECOND:
        raise _replaced_forward(hook, type(module).__name__)


def _check_compiled_reached(site: CompiledSite) -> None:
    if not _take_reached(site) and current_compiled_pass().kind is not Pass.SECOND:
        raise _replaced_forward(site, "module")


CHECKS["reached"] = _check_compiled_reached


def note_reached(hook: AnySite, kind: Pass) -> None:
    """The stand-in for the forward of a site's module runs."""
    hook.state.ran.add(hook.position)  # also where it is called past the hooks
    if kind is not Pass.SECOND:  # which may break off as soon as it has what it needs
        hook.state.reached[hook.position] += 1


def _take_reached(hook: AnySite) -> bool:
    """Whether the stand-in for the forward ran in the pass of a module that now ends; the pass is forgotten."""
    reached = hook.state.reached[hook.position] > 0
    hook.state.reached[hook.position] -= reached
    return reached


def _replaced_forward(hook: AnySite, module: str) -> UsageError:
    return UsageError(
        f"site {hook.name!r}: the forward method of this {module} was replaced after the router was attached, and "
        "level='parameters' routes inside of it. Replace it first, then make the router; or wrap what stands there."
    )
