"""Whether other code than a layer reads its weights: then zeros in them would change more than the layer's units."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from .. import _torch_private as private
from ..errors import SiteError
from ..router._attachment import AttachedSite
from ..router._hooks import is_of_a_router
from ..router._parameter_level import OwnForward

# What tells of a tensor nothing that its values decide.
_METADATA: Final = frozenset(
    {"size", "dim", "stride", "numel", "nelement", "storage_offset", "is_contiguous", "__len__"}
)


def code_besides_layers(model: nn.Module) -> str | None:
    """What in a model may read weights without calling the layer that holds them; None if provably nothing does.

    It is proved for layers of torch.nn alone and in `nn.Sequential`s, with no hooks but a router's.
    """
    for name, module in model.named_modules():
        where = f"module {name!r}" if name else "the model itself"
        kind = type(module)
        if getattr(nn, kind.__name__, None) is not kind:
            return f"{where} is a {kind.__name__}, whose forward method may read any weight"
        if kind is not nn.Sequential and next(module.children(), None) is not None:
            return f"{where} is a {kind.__name__}, which may read the weights of the layers in it"
        if not isinstance(vars(module).get("forward"), OwnForward | None):
            return f"{where} has another forward method than its class"
        hooks = [*private.forward_hooks(module, "input"), *private.forward_hooks(module, "output")]
        if not all(map(is_of_a_router, hooks)):
            return f"{where} has hooks, which may read any weight"
    return None


@contextlib.contextmanager
def refused_elsewhere(weights: Mapping[Tensor, AttachedSite]) -> Iterator[None]:
    """For the length of the block, a pass in which other code than a site's own layer reads its weights is refused.

    Args:
        weights: Weights and biases, and the site whose module holds each.

    Raises:
        SiteError: It is such a pass.
    """
    seen = _Reads(weights)
    with contextlib.ExitStack() as stack:
        for module in {site.module for site in weights.values()}:
            # Innermost: other hooks of the module run while it is not counted as running.
            for handle in (
                module.register_forward_pre_hook(seen.enter),
                module.register_forward_hook(seen.leave, prepend=True),
            ):
                stack.callback(handle.remove)
        with seen:
            yield


class _Reads(TorchFunctionMode):
    """Looks at the arguments of all functions of torch."""

    def __init__(self, weights: Mapping[Tensor, AttachedSite]) -> None:
        super().__init__()
        self._weights = weights
        self._running: list[nn.Module] = []

    def enter(self, module: nn.Module, args: Any) -> None:
        self._running.append(module)

    def leave(self, module: nn.Module, args: Any, output: Any) -> None:
        self._running.pop()

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        name = getattr(function, "__name__", "")
        if name not in _METADATA and not (name == "__get__" and not isinstance(result, Tensor)):
            for leaf in _tensors((args, kwargs)):
                for weight, site in self._weights.items():
                    if site.module not in self._running and (leaf is weight or _lies_in(leaf, weight)):
                        raise SiteError(
                            f"site {site.name!r}: the weights of this {type(site.module).__name__} are read by other "
                            f"code too ({name or function!r}), so that zeros in them would change more than its "
                            "units; nothing was changed. Put the site on the activation function behind this layer, "
                            "or switch the units off where the model is used: `with router.ablated(...)`."
                        )
        return result


def _lies_in(tensor: Tensor, whole: Tensor) -> bool:
    """Whether a tensor begins in the memory of another."""
    try:
        start = whole.data_ptr()
        return start <= tensor.data_ptr() < start + whole.numel() * whole.element_size()
    except RuntimeError:  # a sparse or fake tensor, which has no memory to point at
        return False


def _tensors(nested: Any) -> Iterator[Tensor]:
    if isinstance(nested, Tensor):
        yield nested
    elif isinstance(nested, Mapping):
        yield from _tensors(list(nested.values()))
    elif isinstance(nested, tuple | list):
        for inner in nested:
            yield from _tensors(inner)
    elif dataclasses.is_dataclass(nested) and not isinstance(nested, type):
        yield from _tensors([getattr(nested, field.name) for field in dataclasses.fields(nested)])
