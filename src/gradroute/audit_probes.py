"""`Probes`: looks at the tensors of a router's sites, before they are routed. `Runs`: the user's step, run again."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from .audit_groups import Group, take
from .audit_paths import nodes
from .audit_state import Untouched, norm, trainable, unrouted
from .errors import UnroutedWarning, UsageError
from .router import Labels, Router, _SiteHook
from .sites import edit_arguments, edit_output

Step: TypeAlias = Callable[[Any], Tensor]
Edit: TypeAlias = Callable[[_SiteHook, Tensor], Tensor]


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
        seen: For each site (in the order of ``router._hooks``), its tensors in the run that is on.
    """

    def __init__(self, router: Router, edit: Edit | None = None) -> None:
        self._router = router
        self._edit = edit
        self._open = True
        self.seen: list[list[Seen]] = [[] for _ in router._hooks]
        self.forks: dict[str, list[GradientEdge]] = {}

    def __enter__(self) -> Probes:
        modules = dict(self._router.model.named_modules(remove_duplicate=False))
        self._handles = []
        for name, module in modules.items():
            for kind in foreign_hooks(module):
                self._handles.append(self._watch_fork(name, module, kind))
        # Prepended in reverse, so that they run before the router's own hooks and in the order of the sites.
        for position, hook in reversed(list(enumerate(self._router._hooks))):
            module = modules[hook.name]
            if hook.site.on == "input":
                pre = self._on_input(position, hook)
                self._handles.append(module.register_forward_pre_hook(pre, prepend=True, with_kwargs=True))
            else:
                self._handles.append(module.register_forward_hook(self._on_output(position, hook), prepend=True))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handle in self._handles:
            handle.remove()

    def close(self) -> None:
        """Look at nothing any more: activation checkpointing runs modules again in backward."""
        self._open = False

    def _on_output(self, position: int, hook: _SiteHook) -> Callable[..., Any]:
        def probe(module: nn.Module, args: Any, output: Any) -> Any:
            edited = edit_output(output, hook.site.path, self._looking(position, hook), site=hook.name)
            return edited if self._edit is not None and self._open else None

        return probe

    def _on_input(self, position: int, hook: _SiteHook) -> Callable[..., Any]:
        def probe(module: nn.Module, args: Any, kwargs: Any) -> Any:
            look = self._looking(position, hook)
            edited = edit_arguments(args, kwargs, hook.site.path, hook.arguments, look, site=hook.name)
            return edited if self._edit is not None and self._open else None

        return probe

    def _looking(self, position: int, hook: _SiteHook) -> Callable[[Tensor], Tensor]:
        def look(x: Tensor) -> Tensor:
            if not self._open:
                return x
            edge = get_gradient_edge(x) if x.requires_grad else None
            self.seen[position].append(Seen(edge, x.detach().new_empty(1).expand(x.shape)))
            return x if self._edit is None else self._edit(hook, x)

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


def foreign_hooks(module: nn.Module) -> list[str]:
    """At which ends of a module ("input", "output") hooks of the user see its tensors before a router routes them."""
    found = []
    for end, hooks in (("input", module._forward_pre_hooks), ("output", module._forward_hooks)):
        for hook in hooks.values():
            owner = type(getattr(hook, "__self__", hook)).__module__
            if isinstance(getattr(hook, "__self__", None), _SiteHook):
                break
            origin = getattr(hook, "__module__", None) or ""
            if not any(where.split(".")[0] in ("torch", "gradroute") for where in (owner, origin)):
                found.append(end)
                break
    return found


@dataclass
class Run:
    """One forward and backward pass.

    Attributes:
        loss: The loss, with its graph.
        gradients: The gradient of each parameter that requires one; None where none arrives.
        seen: The sites' tensors.
        calls: How often each site's module was called.
        at_sites: The gradient that arrives at each of them.
        forks: The tensors that the user's own hooks saw before a router did, by the name of their module.
    """

    loss: Tensor
    gradients: dict[str, Tensor | None]
    seen: list[list[Seen]]
    calls: list[int]
    at_sites: list[list[Tensor | None]]
    forks: dict[str, list[GradientEdge]] = field(default_factory=dict)

    @property
    def norm(self) -> float:
        """The norm of the whole gradient."""
        return norm(self.gradients.values())


class Runs:
    """Runs the user's step on parts of the batch, each time from the same state of the world.

    Args:
        router: The router.
        step: From a batch to the loss.
        batch: The batch.
        size: The number of its examples; None where labels do not say.
        untouched: What puts the world back.
    """

    def __init__(self, router: Router, step: Step, batch: Any, size: int | None, untouched: Untouched) -> None:
        self.router = router
        self._step = step
        self._batch = batch
        self._size = size
        self._untouched = untouched
        self._parameters = trainable(router.model)

    @property
    def several(self) -> bool:
        """Whether the batch holds examples that could trade places."""
        return self._size is not None and self._size > 1

    def label(self, group: Group, *, routed: bool) -> Run:
        """Forward and backward of one label's examples, routed or not.

        Raises:
            UsageError: The step returns no scalar loss, or gradients are not finite.
        """
        self._untouched.rewind()
        batch = take(self._batch, group.examples, self._size)
        if routed:
            return self._run(batch, group.labels)
        with unrouted(self.router):
            return self._run(batch, group.labels)

    def _run(self, batch: Any, labels: Labels) -> Run:
        with Probes(self.router) as probes, torch.enable_grad(), self.router(labels), _quiet():
            loss = self.loss(batch)
            probes.close()
            seen = [(site, item) for site, items in enumerate(probes.seen) for item in items if item.edge is not None]
            edges = [item.edge for _, item in seen if item.edge is not None]
            parameters = list(self._parameters.values())
            found = gradients(loss, [*parameters, *edges])
        n = len(parameters)
        at_sites: list[list[Tensor | None]] = [[] for _ in probes.seen]
        for (site, _), gradient in zip(seen, found[n:], strict=True):
            at_sites[site].append(gradient)
        by_name = dict(zip(self._parameters, found[:n], strict=True))
        for name, gradient in by_name.items():
            if gradient is not None and not bool(torch.isfinite(norm_tensor(gradient))):
                raise UsageError(
                    f"the gradient of {name!r} is not finite, so there is nothing to audit: find out why it is inf or "
                    "NaN first, or leave the examples out that make it so."
                )
        kept = [[item for item in items if item.edge is not None] for items in probes.seen]
        calls = [len(items) for items in probes.seen]
        return Run(loss, by_name, kept, calls, at_sites, probes.forks)

    def loss(self, batch: Any) -> Tensor:
        """What the step makes of a batch.

        Raises:
            UsageError: It is no scalar tensor with a graph.
        """
        loss = self._step(batch)
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            given = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
            raise UsageError(f"step(batch) must return the loss, a tensor with one entry; got {given}.")
        return loss

    def whole(self, labels: Labels, edit: Edit | None = None, *, traded: bool = False) -> tuple[Tensor, Probes]:
        """The loss of the whole batch, unrouted, with the sites' tensors edited; for a graph, under grad mode.

        With ``traded=True`` each example is in the place of the one before it.
        """
        self._untouched.rewind()
        batch = self._batch
        if traded and self._size is not None:
            batch = take(batch, torch.arange(1, self._size + 1, device="cpu") % self._size, self._size)
        with unrouted(self.router), Probes(self.router, edit) as probes, self.router(labels), _quiet():
            loss = self.loss(batch)
            probes.close()
        return loss, probes


class _quiet(warnings.catch_warnings):  # noqa: N801  # used as a function
    """No warning that a site was silent: the audit says so itself."""

    def __enter__(self) -> None:
        super().__enter__()
        warnings.simplefilter("ignore", UnroutedWarning)


def gradients(loss: Tensor, inputs: list[Any]) -> list[Tensor | None]:
    """The gradients of a loss. Nobody's ``.grad`` is touched.

    Raises:
        UsageError: The loss has no graph, or it holds reentrant checkpoints.
    """
    if loss.grad_fn is None:
        raise UsageError(
            "step(batch) must return a loss with a graph, and this one does not require gradients: compute it outside "
            "of torch.no_grad(), and without calling backward() or detach()."
        )
    # Asked by torch.autograd.grad, these give no gradient, and say nothing.
    if any(node.name().startswith("CheckpointFunctionBackward") for node in nodes([loss.grad_fn])):
        raise UsageError(
            "an audit cannot look into reentrant activation checkpoints, which hide their graph: checkpoint with "
            "use_reentrant=False."
        )
    return list(torch.autograd.grad(loss, inputs, allow_unused=True))


def norm_tensor(tensor: Tensor) -> Tensor:
    """The norm of a gradient, dense or sparse."""
    values = tensor.coalesce().values() if tensor.is_sparse else tensor
    return values.detach().double().square().sum()
