"""`Reference`: a model whose sites are routed by the textbook formulas, to hold a router against. Slow and plain."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from types import TracebackType
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from ..router._attachment import Labels, attachment_of
from ..router._nested import argument_names, edit_arguments, edit_output
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
    x = masked(x, _aligned(mask, x, site.dim))
    return x if off is None else _silenced(site, off, x)


def _silenced(site: Site, off: Tensor, x: Tensor) -> Tensor:
    return silenced(x, along(off, x.ndim, site.dim))


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
    output = _own_parameters(module, run, names, sites, args, kwargs)
    for site, off in silent:
        if site.on == "output":
            output = edit_output(output, site.path, partial(_silenced, site, off), site="oracle")
    return output


def _own_parameters(  # noqa: PLR0917
    module: nn.Module,
    run: Callable[..., Any],
    names: list[str],
    sites: list[tuple[Site, Tensor]],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Any:
    fixed = {name: parameter.detach() for name, parameter in module.named_parameters()}
    random = torch.get_rng_state()
    whole = _call(module, run, fixed, args, kwargs)
    after = torch.get_rng_state()
    detached = [arg.detach() if isinstance(arg, Tensor) else arg for arg in args]
    seen, named = tuple(detached), {k: v.detach() if isinstance(v, Tensor) else v for k, v in kwargs.items()}
    readers = [(site, mask) for site, mask in sites if site.on == "input"]
    is_norm = isinstance(module, _NORMS)
    if not is_norm:
        for site, mask in readers:
            edit = partial(_times, site, mask)
            seen, named = edit_arguments(seen, named, site.path, names, edit, site="oracle")
    buffers = {name: buffer.clone() for name, buffer in module.named_buffers()}
    torch.set_rng_state(random)
    own = _call(module, run, buffers, seen, named)
    torch.set_rng_state(after)
    if is_norm and readers:
        # A norm's weight reads, and its bias does not.
        without = {name: parameter.detach() for name, parameter in module.named_parameters() if name == "weight"}
        of_bias = _call(module, run, {**buffers, **without}, seen, named)
        of_weight = own - of_bias
        for site, mask in readers:
            of_weight = _scaled(of_weight, _aligned(mask, of_weight, site.dim))
        own = of_bias + of_weight
    writers = [(site, mask) for site, mask in sites if site.on == "output"]
    if not writers:
        _finite(own)
        return whole + (own - own.detach())
    path, site_name = writers[0][0].path, "oracle"
    learning: list[Tensor] = []
    edit_output(own, path, lambda y: learning.append(y) or y, site=site_name)  # type: ignore[func-returns-value]
    if readers:
        _finite(learning[0])
    change = learning[0] - learning[0].detach()
    for site, mask in writers:
        change = _scaled(change, _aligned(mask, change, site.dim))
    return edit_output(whole, path, lambda y: y + change, site=site_name)


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
    return x * _aligned(mask, x, site.dim)


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
