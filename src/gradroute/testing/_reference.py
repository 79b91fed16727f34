"""`Reference`: a model whose sites are routed by the textbook formulas, to hold a router against. Slow and plain."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from types import TracebackType
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from ..router._attachment import Labels, attachment_of
from ..router._nested import argument_names, edit_arguments, edit_output, map_tensors
from ..router._router import Router
from ..router._site import Site
from ._oracle import along, masked, oracle_mask, oracle_silent, silenced

_NORMS = (nn.LayerNorm, nn.RMSNorm, nn.GroupNorm, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


_Masks: TypeAlias = "tuple[Tensor, Tensor | None]"
"""Of gradients, and of the units that are off."""
_SiteMasks: TypeAlias = tuple[Site, _Masks]


class Reference:
    """``with Reference(model, router, labels)``: the model's sites, those of a router on its twin, by formula.

    With ``forward_only=True`` only what is silent is so, and all is learned.

    Level "activations": ``x.detach() + mask * (x - x.detach())``. Level "parameters": the module runs without learning,
    and once more on its own input, detached (and masked, for what reads), whose value is taken off again.

    Which entries the masks close, `closed_entries` finds in the graph of a loss by a NaN. A closed column of what reads
    sees a 0, which a NaN would make another NaN of: there `_finite` puts random numbers in its place.
    """

    def __init__(self, model: nn.Module, router: Router, labels: Labels, *, forward_only: bool = False) -> None:
        self._model = model
        self._labels = labels
        self._forward_only = forward_only
        self._sites = [
            (hook.name, hook.site, attachment_of(router).groups[hook.group][0]) for hook in attachment_of(router).sites
        ]

    def __enter__(self) -> Reference:
        modules = dict(self._model.named_modules(remove_duplicate=False))
        self._handles = []
        self._forwards: list[nn.Module] = []
        own: dict[nn.Module, list[_SiteMasks]] = {}
        for name, site, pattern in self._sites:
            module = modules[name]
            labels = self._labels[pattern] if isinstance(self._labels, Mapping) else self._labels
            off = oracle_silent(site.spec, labels) if site.spec.silent else None
            mask = oracle_mask(site.spec, labels), off
            if self._forward_only:
                if off is None:
                    continue
                mask = torch.ones_like(mask[0]), off
            elif site.level == "parameters" and not isinstance(module, nn.Embedding):
                own.setdefault(module, []).append((site, mask))
                continue
            if site.on == "output":
                hook = partial(_route_output, site, mask, name)
                self._handles.append(module.register_forward_hook(hook, prepend=True))
            else:
                pre = partial(_route_input, site, mask, name)
                self._handles.append(module.register_forward_pre_hook(pre, with_kwargs=True))
        for module, sites in own.items():
            module.forward = partial(_own, module, sites)
            self._forwards.append(module)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handle in self._handles:
            handle.remove()
        for module in self._forwards:
            del module.forward


def _aligned(mask: Tensor, x: Tensor, dim: int) -> Tensor:
    return along(mask, x.ndim, dim).to(x.device, x.dtype)


def _routed(site: Site, masks: _Masks, x: Tensor) -> Tensor:
    mask, off = masks
    x = masked(x, _aligned(mask, x, site.axis))
    return x if off is None else _silenced(site, off, x)


def _silenced(site: Site, off: Tensor, x: Tensor) -> Tensor:
    return silenced(x, along(off, x.ndim, site.axis))


def _route_output(site: Site, mask: _Masks, name: str, *call: Any) -> Any:
    _module, _args, output = call
    return edit_output(output, site.path, partial(_routed, site, mask), site=name)


def _route_input(site: Site, mask: _Masks, name: str, *call: Any) -> Any:
    module, args, kwargs = call
    return edit_arguments(args, kwargs, site.path, argument_names(module), partial(_routed, site, mask), site=name)


def _own(module: nn.Module, both: list[_SiteMasks], *args: Any, **kwargs: Any) -> Any:
    """A module's output, whose gradient goes whole to its input, and by route to its own parameters."""
    run = type(module).forward
    names = argument_names_of(run)
    sites = [(site, mask) for site, (mask, _) in both]
    silent = [(site, off) for site, (_, off) in both if off is not None]
    for site, off in silent:
        if site.on == "input":
            args, kwargs = edit_arguments(args, kwargs, site.path, names, partial(_silenced, site, off), site="oracle")
    output = _own_parameters(module, run, sites, args, kwargs)
    for site, off in silent:
        if site.on == "output":
            output = edit_output(output, site.path, partial(_silenced, site, off), site="oracle")
    return output


def _own_parameters(
    module: nn.Module,
    run: Callable[..., Any],
    sites: list[tuple[Site, Tensor]],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Any:
    """The same without what is silent."""
    routed = _sites_of_parameters(module, sites)
    fixed = {name: parameter.detach() for name, parameter in module.named_parameters()}
    random = torch.get_rng_state()
    output = _call(module, run, {name: fixed[name] for name in routed}, args, kwargs)
    after = torch.get_rng_state()
    for which in dict.fromkeys(routed.values()):  # parameters of the same sites at once
        others = {name: tensor for name, tensor in fixed.items() if routed.get(name) != which}
        torch.set_rng_state(random)
        output = _teaching(module, [sites[i] for i in which], others, output, (args, kwargs))
    torch.set_rng_state(after)
    return output


def _sites_of_parameters(module: nn.Module, sites: list[tuple[Site, Tensor]]) -> dict[str, tuple[int, ...]]:
    """For each parameter that a site routes, the positions of those that do."""
    every = dict(module.named_parameters(remove_duplicate=False))
    found: dict[str, tuple[int, ...]] = {}
    for name, parameter in module.named_parameters():
        names = {other for other, tensor in every.items() if tensor is parameter}
        which = []
        for position, (site, _) in enumerate(sites):
            reads_nothing = site.on == "input" and isinstance(module, _NORMS) and name == "bias"
            if (site.parameters is None or names & set(site.parameters)) and not reads_nothing:
                which.append(position)
        if which:
            found[name] = tuple(which)
    return found


def _teaching(
    module: nn.Module,
    sites: list[tuple[Site, Tensor]],
    fixed: dict[str, Tensor],
    output: Any,
    call: tuple[tuple[Any, ...], dict[str, Any]],
) -> Any:
    """An output plus a term of value 0, by which those parameters learn that are not fixed."""
    run = type(module).forward
    names = argument_names_of(run)
    args, kwargs = call
    seen, named = map_tensors((args, kwargs), Tensor.detach)
    readers = [(site, mask) for site, mask in sites if site.on == "input"]
    writers = [(site, mask) for site, mask in sites if site.on == "output"]
    after = []
    if isinstance(module, _NORMS):  # whose weight reads what it writes
        after = readers
    else:
        for site, mask in readers:
            seen, named = edit_arguments(seen, named, site.path, names, partial(_times, site, mask), site="oracle")
    buffers = {name: buffer.clone() for name, buffer in module.named_buffers()}
    own = _call(module, run, {**buffers, **fixed}, seen, named)
    masks_of = {id(y): [*after] for y in _tensors(own)}  # an output that no site is on teaches the parameters whole
    for site, mask in writers:
        edit_output(own, site.path, partial(_noted, masks_of, (site, mask)), site="oracle")
    learning = iter(_tensors(own))

    def learned(y: Tensor) -> Tensor:
        other = next(learning)
        if other.grad_fn is None:
            return y
        if readers:
            _finite(other)
        change = other - other.detach()
        for site, mask in masks_of[id(other)]:
            change = _scaled(change, _aligned(mask, change, site.axis))
        return y + change

    return map_tensors(output, learned)


def _noted(masks_of: dict[int, list[tuple[Site, Tensor]]], mask: tuple[Site, Tensor], y: Tensor) -> Tensor:
    masks_of[id(y)].append(mask)
    return y


def _tensors(nest: Any) -> list[Tensor]:
    found: list[Tensor] = []
    map_tensors(nest, lambda y: found.append(y) or y)  # type: ignore[func-returns-value]
    return found


def _scaled(x: Tensor, weights: Tensor) -> Tensor:
    """The product, in which a weight of 0 is one of any gradient too, a NaN's included."""
    return torch.where(weights == 0, 0, x * weights)


def _finite(own: Tensor) -> None:
    """Where a NaN arrives at a reader's own output, positive random numbers go on to what makes it.

    And each operation on the way gets its gradient times other ones, so that no sum of them cancels out.
    """
    if own.grad_fn is None:
        return

    def scattered(gradients: tuple[Tensor | None, ...]) -> tuple[Tensor | None, ...]:
        return tuple(None if g is None else g * (torch.rand_like(g) + 0.5) for g in gradients)

    def put(gradient: Tensor) -> Tensor | None:
        if not bool(gradient.isnan().any()):
            return None
        for node in _nodes(own.grad_fn):
            node.register_prehook(scattered)
        return torch.where(gradient.isnan(), torch.rand_like(gradient) + 0.5, gradient)

    own.register_hook(put)  # type: ignore[no-untyped-call]


def _nodes(start: Any) -> set[Any]:
    """All operations that a graph's root is made of, itself included."""
    found: set[Any] = set()
    coming = [start]
    while coming:
        node = coming.pop()
        if node is not None and node not in found:
            found.add(node)
            coming += [before for before, _ in node.next_functions]
    return found


def argument_names_of(run: Callable[..., Any]) -> list[str]:
    """The names of the arguments of a class's forward, without its self."""
    code = run.__code__
    return list(code.co_varnames[1 : code.co_argcount])


def _times(site: Site, mask: Tensor, x: Tensor) -> Tensor:
    return x * _aligned(mask, x, site.axis)


class _Bound(nn.Module):
    """A module's own forward, past the one that stands in for it."""

    def __init__(self, module: nn.Module, run: Callable[..., Any]) -> None:
        super().__init__()
        self.module = module
        self.run = run

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.run(self.module, *args, **kwargs)


def _call(
    module: nn.Module, run: Callable[..., Any], tensors: dict[str, Tensor], args: Any, kwargs: dict[str, Any]
) -> Any:
    named = {f"module.{name}": tensor for name, tensor in tensors.items()}
    return torch.func.functional_call(_Bound(module, run), named, tuple(args), kwargs)
