"""`Probes`: looks at the tensors of a router's sites, before they are routed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from ... import _torch_private as private
from ...router._attachment import AttachedSite, attachment_of
from ...router._hooks import is_of_a_router
from ...router._nested import edit_arguments, edit_output
from ...router._router import Router
from ...router._site import Site
from ...unit_dims import End

Edit: TypeAlias = Callable[[AttachedSite, Tensor], Tensor]


@dataclass
class Seen:
    """One site's tensor in one call of its module, before it was routed.

    Attributes:
        edge: Where its gradient arrives; None where it has none.
        like: A tensor of its shape, dtype and device that holds no memory.
    """

    edge: GradientEdge | None
    like: Tensor


class Probes:
    """``with Probes(router) as probes``: hooks that see each site's tensor first, and may edit it.

    Attributes:
        seen: For each site (in the order of ``attachment_of(router).sites``), its tensors in the run that is on.
    """

    def __init__(self, router: Router, edit: Edit | None = None) -> None:
        self._router = router
        self._attachment = attachment_of(router)
        self._edit = edit
        self._open = True
        self._handles: list[torch.utils.hooks.RemovableHandle] = []
        self.seen: list[list[Seen]] = [[] for _ in attachment_of(router).sites]
        self.forks: dict[str, list[GradientEdge]] = {}

    def __enter__(self) -> Probes:
        for name, module in self._attachment.modules_by_every_name().items():
            for kind in foreign_hooks(module):
                self._handles.append(self._watch_fork(name, module, kind))
        # Prepended in reverse, so that they run before the router's own hooks and in the order of the sites.
        for position, attached in reversed(list(enumerate(self._attachment.sites))):
            module = attached.module
            if attached.site.on == "input":
                pre = self._on_input(position, attached)
                self._handles.append(module.register_forward_pre_hook(pre, prepend=True, with_kwargs=True))
            else:
                self._handles.append(module.register_forward_hook(self._on_output(position, attached), prepend=True))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handle in self._handles:
            handle.remove()

    def close(self) -> None:
        """Look at nothing any more: activation checkpointing runs modules again in backward."""
        self._open = False

    def _on_output(self, position: int, attached: AttachedSite) -> Callable[..., Any]:
        def probe(module: nn.Module, args: Any, output: Any) -> Any:
            edited = edit_output(output, attached.site.path, self._looking(position, attached), site=attached.name)
            return edited if self._edit is not None and self._open else None

        return probe

    def _on_input(self, position: int, attached: AttachedSite) -> Callable[..., Any]:
        def probe(module: nn.Module, args: Any, kwargs: Any) -> Any:
            look = self._looking(position, attached)
            edited = edit_arguments(
                args, kwargs, attached.site.path, list(attached.arguments), look, site=attached.name
            )
            return edited if self._edit is not None and self._open else None

        return probe

    def _looking(self, position: int, attached: AttachedSite) -> Callable[[Tensor], Tensor]:
        def look(x: Tensor) -> Tensor:
            if not self._open:
                return x
            edge = get_gradient_edge(x) if x.requires_grad else None
            self.seen[position].append(Seen(edge, x.detach().new_empty(1).expand(x.shape)))
            return x if self._edit is None else self._edit(attached, x)

        return look

    def _watch_fork(self, name: str, module: nn.Module, kind: str) -> torch.utils.hooks.RemovableHandle:
        found = self.forks.setdefault(name, [])

        def note(tensors: Any) -> None:
            for tensor in tensors if isinstance(tensors, tuple | list) else (tensors,):
                if self._open and isinstance(tensor, Tensor) and tensor.requires_grad:
                    found.append(get_gradient_edge(tensor))

        if kind == "input":
            return module.register_forward_pre_hook(lambda _, args: note(args), prepend=True)
        return module.register_forward_hook(lambda _, __, output: note(output), prepend=True)


def along_units(tensor: Tensor, site: Site) -> Tensor:
    """A site's tensor, or its gradient, with the units first; all of it at the one unit that is the whole tensor."""
    return tensor.unsqueeze(0) if site.is_whole else tensor.movedim(site.axis, 0)


def foreign_hooks(module: nn.Module) -> list[End]:
    """At which ends of a module ("input", "output") hooks of the user see its tensors before a router routes them."""
    found: list[End] = []
    ends: tuple[End, ...] = ("input", "output")
    for end in ends:
        for hook in private.forward_hooks(module, end):
            owner = type(getattr(hook, "__self__", hook)).__module__
            if is_of_a_router(hook):
                break
            origin = getattr(hook, "__module__", None) or ""
            if not any(where.split(".")[0] in ("torch", "gradroute") for where in (owner, origin)):
                found.append(end)
                break
    return found
