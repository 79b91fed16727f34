"""The hooks that a router puts on a model. They edit tensors; what could lose a mask on the way is in `guards`."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .. import _torch_private as private
from ..autograd._functional import route_mask
from ..autograd._functions import masked
from ..errors import RoutingError, UsageError
from ..spec._deferred_mask import BatchMask, DeferredMask
from ..unit_dims import spread
from ._attachment import AttachedSite
from ._in_flight import State
from ._nested import edit_arguments, edit_output
from ._parameter_level import OwnForward
from ._site_mask import SiteMask
from .guards._in_place import held_by_the_caller, refuse_work_in_place
from .guards._passes import check_pass, masks_for_parameters, watch_what_a_reader_returns
from .guards._programs import refuse_cuda_graph, refuse_trace
from .guards._replaced_forward import refuse_replaced_forward


class SiteHook:
    """One site on one module: a plain callable, so that hooks copy and pickle with the model."""

    def __init__(self, position: int, attached: AttachedSite, state: State, *, time_first: bool) -> None:
        self.position = position
        self.name = attached.name
        self.site = attached.site
        self.group = attached.group
        self.arguments = list(attached.arguments)
        self.state = state
        self.time_first = time_first
        self.routes_parameters = attached.routes_parameters
        self.dim, self.is_whole = attached.site.axis, attached.site.is_whole
        self.may_silence = attached.site.spec.has_silent
        self.edits_whole_output = attached.site.path == () and not attached.routes_parameters

    def attach(self, module: nn.Module) -> list[torch.utils.hooks.RemovableHandle]:
        """Register with the site's module."""
        if self.routes_parameters:
            own = OwnForward.of(module)
            (own.writers if self.site.on == "output" else own.readers).append(self)
        if self.site.on == "input":
            handles = [module.register_forward_pre_hook(self.on_input, with_kwargs=True)]
            if self.routes_parameters:
                handles.append(module.register_forward_hook(self.after_input))
            return handles
        # First among the hooks: whoever else looks at the output sees the routed one, and cannot go around it.
        return [module.register_forward_hook(self.on_output, prepend=True, with_kwargs=True)]

    def on_output(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        """The forward hook."""
        masks = check_pass(self, module, output)
        if self.edits_whole_output and len(masks) > 0 and not self.state.kept and isinstance(output, Tensor):
            return self._routed(output, masks[self.group], (args, kwargs))  # the common case, in few steps
        refuse_replaced_forward(self, module)
        edit = self._edit(masks, given=(args, kwargs))
        return None if edit is None else edit_output(output, self.site.path, edit, site=self.name)

    def on_input(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The forward pre-hook."""
        masks = check_pass(self, module, (args, kwargs))
        refuse_work_in_place(self, module, masks)
        edit = self._edit(masks, given=(args, kwargs))
        if edit is None:
            return None
        return edit_arguments(args, kwargs, self.site.path, self.arguments, edit, site=self.name)

    def after_input(self, module: nn.Module, args: Any, output: Any) -> None:
        """The forward hook of a site that routes the parameters which read its input."""
        refuse_replaced_forward(self, module)
        watch_what_a_reader_returns(self, module, output)

    def parameter_mask(self) -> SiteMask | None:
        """The mask of the batch in flight, for the parameters of the site's module; None outside of a block."""
        masks = masks_for_parameters(self)
        return self._site_mask(masks[self.group]) if len(masks) > 0 else None

    def _site_mask(self, mask: BatchMask) -> SiteMask:
        return SiteMask(mask, self.dim, self.site.path, self.name, self.time_first, self.site.parameters)

    def _edit(self, masks: tuple[BatchMask, ...], given: Any) -> Callable[[Tensor], Tensor] | None:
        """What is to be done to the site's tensor; None where nothing is."""
        # The units of a site that names parameters are no label's own: all labels teach them by the others.
        owns_units = self.site.parameters is None
        kept = self.state.kept[self.group] if self.state.kept and owns_units else None
        routed = len(masks) > 0 and not self.routes_parameters
        if not routed and kept is None:
            return None

        def edit(x: Tensor) -> Tensor:
            if routed:
                x = self._routed(x, masks[self.group], given)
            return x if kept is None else _switched_off(x, kept, self.dim)

        return edit

    def _routed(self, x: Tensor, mask: BatchMask, given: tuple[tuple[Any, ...], dict[str, Any]]) -> Tensor:
        """The site's tensor, routed.

        Where the caller still holds it, one of the module's arguments, the routed one must not be written to.
        """
        if self.time_first:
            self._site_mask(mask).check_order(x.shape)
        if isinstance(mask, DeferredMask):
            self._site_mask(mask).check_when_known(x, broadcast=self.is_whole)
        held = held_by_the_caller(x, given)
        try:
            x = route_mask(x, mask, self.dim, replacing=not held, broadcast=self.is_whole)
        except RoutingError as error:
            raise type(error)(f"site {self.name!r}: {error}") from None
        if held and mask.silences and x.requires_grad:
            # What works in place on it means to change what the caller holds, too, and this is a new tensor.
            # One of several views at once: that raises there, as on the view that there is without silence.
            x = x.unsqueeze(0).unbind(0)[0]
        return x


def _switched_off(x: Tensor, kept: Tensor, dim: int) -> Tensor:
    if x.is_nested:  # which the fast path of nn.TransformerEncoder makes of padded batches
        inner = dim if dim < 0 else dim - 1
        return torch.nested.as_nested_tensor([_switched_off(part, kept, inner) for part in x.unbind()], layout=x.layout)
    keep = spread(kept.to(x.device), x, dim)
    return masked(x, keep) if private.is_distributed(x) else torch.where(keep, x, 0)


class MarkRun:
    """Notes that the model ran, so that sites that did not run can be told from a model that was not called."""

    __name__ = "MarkRun"

    @property
    def __globals__(self) -> Any:
        # `torch.jit.script` asks every hook for them, in order to compile it.
        raise UsageError(
            "torch.jit.script cannot compile the hooks of a router: script the model before one is attached, or after "
            "router.remove(); torch.compile takes a routed model as it is."
        )

    def __init__(self, state: State) -> None:
        self.state = state

    def __call__(self, module: nn.Module, args: Any) -> None:
        """The forward pre-hook of the model."""
        if not torch.compiler.is_compiling():
            if self.state.masks:
                refuse_cuda_graph("a pass in a `with router(labels)` block")
                refuse_trace()
            self.state.model_ran = True
            self.state.model_records = torch.is_grad_enabled()


def is_of_a_router(hook: Any) -> bool:
    """Whether a hook is one that a router registered."""
    return isinstance(getattr(hook, "__self__", hook), SiteHook | MarkRun)


def hooks_before(site: AttachedSite) -> list[Any]:
    """The hooks that see a site's tensor between the forward pass of its module and the site's own hook."""
    hooks = private.forward_hooks(site.module, site.site.on)
    if site.site.on == "input":
        hooks.reverse()

    def is_another(hook: Any) -> bool:
        owner = getattr(hook, "__self__", None)
        return not (isinstance(owner, SiteHook) and owner.site is site.site and owner.name == site.name)

    return list(itertools.takewhile(is_another, hooks))


def drop_orphans(model: nn.Module) -> None:
    """Take off the hooks that a copied model carries of a router that was not copied with it."""

    def is_orphan(hook: Any) -> bool:
        owner = getattr(hook, "__self__", hook)
        return isinstance(owner, SiteHook | MarkRun) and owner.state.orphan

    for module in model.modules():
        private.drop_forward_hooks(module, is_orphan)
        remove_own_forward(module, lambda hook: hook.state.orphan)


def remove_own_forward(module: nn.Module, condition: Callable[[Any], bool]) -> None:
    """Take the hooks for which the condition holds off the stand-in for a module's forward, if it has one."""
    own = module.__dict__.get("forward")
    if isinstance(own, OwnForward):
        for hook in [*own.writers, *own.readers]:
            if condition(hook):
                own.remove(hook)
