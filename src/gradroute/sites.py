"""`Site`: a place in a model where a spec applies, and how its tensor is found in a module's input or output."""

from __future__ import annotations

import copy
import dataclasses
import inspect
from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase
from typing import Any, Literal, TypeAlias

from torch import Tensor, nn

from .errors import SiteError, did_you_mean, preview
from .spec import RoutingSpec

Step: TypeAlias = int | str
Edit: TypeAlias = Callable[[Tensor], Tensor]

# Containers of torch that read time before batch unless told batch_first=True.
_SEQUENCE_MODULES = (
    nn.RNNBase,
    nn.MultiheadAttention,
    nn.Transformer,
    nn.TransformerEncoderLayer,
    nn.TransformerDecoderLayer,
    nn.TransformerEncoder,
    nn.TransformerDecoder,
)


@dataclasses.dataclass(frozen=True)
class Site:
    """A place in a model where a spec applies.

    Args:
        spec: Which units each label may teach.
        on: ``"output"`` routes the gradient that enters the module from behind (what *writes* the units learns by
            route); ``"input"`` routes the gradient that leaves the module towards what is before it.
        level: ``"activations"`` masks the gradient of the activation, for the module and all upstream of it.
            ``"parameters"`` masks what the module's *own* parameters learn, and upstream sees the whole gradient: of
            the output's units their weight rows and biases, of the input's units the weight columns that read them (a
            bias reads nothing, and learns whole). A spec of one unit routes the module as a whole.
        dim: The dimension that holds the units.
        index: Which tensor, where the module returns or takes several: a position in a tuple or list, a key of a
            dict, a field of a dataclass, or a tuple of these to reach into nested ones. For inputs, a position or an
            argument's name, whichever way the caller passes it. None: the output, or the first argument, is a tensor.

    Raises:
        SiteError: An argument is none of these.

    Examples:
        >>> Site(RoutingSpec.one_per_label(4), dim=1)
        Site(spec=RoutingSpec.one_per_label(4), on='output', level='activations', dim=1, index=None)
    """

    spec: RoutingSpec
    _: dataclasses.KW_ONLY
    on: Literal["output", "input"] = "output"
    level: Literal["activations", "parameters"] = "activations"
    dim: int = -1
    index: Step | tuple[Step, ...] | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.spec, RoutingSpec):
            raise SiteError(f"a site needs a RoutingSpec; got {type(self.spec).__name__}.")
        if self.on not in ("output", "input"):
            raise SiteError(f"on must be 'output' or 'input'; got {self.on!r}.")
        if self.level not in ("activations", "parameters"):
            raise SiteError(f"level must be 'activations' or 'parameters'; got {self.level!r}.")
        if not isinstance(self.dim, int) or isinstance(self.dim, bool):
            raise SiteError(f"dim must be an integer; got {self.dim!r}.")
        if not all(isinstance(step, int | str) for step in self.path):
            raise SiteError(f"index must be an integer, a string, a tuple of these or None; got {self.index!r}.")

    @property
    def path(self) -> tuple[Step, ...]:
        """The index as steps from the module's output, or from its arguments, to the tensor."""
        if self.index is None:
            return ()
        return self.index if isinstance(self.index, tuple) else (self.index,)


def match(pattern: str, names: Mapping[str, nn.Module]) -> dict[str, nn.Module]:
    """The modules whose qualified name matches a glob, each once, under the first of its names.

    Args:
        pattern: The glob.
        names: All modules by qualified name, as ``model.named_modules(remove_duplicate=False)`` gives them.

    ``*`` matches any characters, dots too. The model itself has the empty name, which only the empty pattern matches.

    Raises:
        SiteError: Nothing matches, or a pattern matches a module and one inside it.
    """
    if pattern in names:
        return {pattern: names[pattern]}
    found: dict[nn.Module, str] = {}
    for name, module in names.items():
        if name and fnmatchcase(name, pattern):
            found.setdefault(module, name)
    if not found:
        model = type(names[""]).__name__
        raise SiteError(f"pattern {pattern!r} matches no module of {model}. {did_you_mean(pattern, names)}")
    for name in found.values():
        inside = [other for other in found.values() if other.startswith(f"{name}.")]
        if inside:
            raise SiteError(
                f"pattern {pattern!r} matches {name!r} and also modules inside it ({preview(inside, 3)}), since * "
                "matches dots too: write a pattern for one level only."
            )
    return {name: module for module, name in found.items()}


def check_called(name: str, model: nn.Module) -> None:
    """Refuse a module whose parent uses its weights without ever calling it, so that no hook on it would run.

    Raises:
        SiteError: The module is such a one.
    """
    parent, _, child = name.rpartition(".")
    if child == "out_proj" and isinstance(model.get_submodule(parent), nn.MultiheadAttention):
        raise SiteError(
            f"{name!r} is never called: nn.MultiheadAttention reads its weights itself, so a site there would route "
            f"nothing. Put the site on {parent!r} with index=0: its output is that of the projection."
        )


def check_level(name: str, module: nn.Module, site: Site) -> None:
    """Refuse a site of level "parameters" where there are none, or none that read the input's units.

    Raises:
        SiteError: There are none.
    """
    if site.level == "activations":
        return
    if next(module.parameters(), None) is None:
        raise SiteError(
            f"site {name!r}: level='parameters' routes a module's own parameters, and a {type(module).__name__} has "
            "none. Use level='activations', or the layers that write or read its tensor."
        )
    if isinstance(module, nn.Embedding) and site.on == "input":
        raise SiteError(f"site {name!r}: an embedding's input are indices, not units. Use on='output'.")


def leads_with_time(name: str, model: nn.Module, site: Site) -> bool:
    """Whether the first dimension of the site's tensor is time (or layers) by torch's own convention, not the batch."""
    module = model.get_submodule(name)
    if isinstance(module, nn.RNNBase) and site.path[:1] == (1,):
        return True  # the final states are [layers, batch, features] whatever batch_first says
    parts = name.split(".") if name else []
    for depth in range(len(parts), -1, -1):
        ancestor = model.get_submodule(".".join(parts[:depth]))
        if isinstance(ancestor, _SEQUENCE_MODULES):
            return any(getattr(inner, "batch_first", None) is False for inner in ancestor.modules())
    return False


def edit_output(output: Any, path: tuple[Step, ...], edit: Edit, *, site: str) -> Any:
    """The output with one tensor edited; containers are copied, so that nobody else's tuple or dict changes.

    Raises:
        SiteError: The path does not lead to a tensor.
    """
    if not path:
        if isinstance(output, Tensor):
            return edit(output)
        raise SiteError(
            f"site {site!r}: expected a tensor, found {_describe(output)}. Say which tensor by Site(..., index=...)."
        )
    step, rest = path[0], path[1:]
    fields = list(output) if isinstance(output, Mapping) else []
    if isinstance(step, int) and step not in fields and -len(fields) <= step < len(fields):
        step = fields[step]  # transformers' ModelOutput counts its fields too
    try:
        inner = getattr(output, str(step)) if _is_dataclass(output) else output[step]
    except (KeyError, IndexError, TypeError, AttributeError):
        raise SiteError(f"site {site!r}: no index {step!r} in {_describe(output)}.") from None
    edited = edit_output(inner, rest, edit, site=site)
    if isinstance(output, tuple):
        items = [edited if i == int(step) % len(output) else item for i, item in enumerate(output)]
        return type(output)(*items) if hasattr(output, "_fields") else tuple(items)
    if isinstance(output, Mapping) and dataclasses.is_dataclass(output):
        return type(output)(**{**output, step: edited})  # transformers' ModelOutput: both, and its keys are its fields
    if dataclasses.is_dataclass(output):
        return dataclasses.replace(output, **{str(step): edited})  # type: ignore[type-var]
    changed = copy.copy(output)
    changed[step] = edited
    return changed


def edit_arguments(
    args: tuple[Any, ...], kwargs: dict[str, Any], path: tuple[Step, ...], names: list[str], edit: Edit, *, site: str
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """A module's arguments with one tensor edited, whether the caller passed it by position or by name.

    Raises:
        SiteError: The path does not lead to a tensor.
    """
    first, rest = (path[0], path[1:]) if path else (0, ())
    position = names.index(first) if isinstance(first, str) and first in names else first
    if isinstance(position, int) and -len(args) <= position < len(args):
        position %= len(args)
        edited = edit_output(args[position], rest, edit, site=site)
        return (*args[:position], edited, *args[position + 1 :]), kwargs
    key = names[position] if isinstance(position, int) and 0 <= position < len(names) else position
    if key not in kwargs:
        raise SiteError(
            f"site {site!r}: no argument {first!r} in a call with {len(args)} by position and "
            f"{preview(kwargs) or 'none'} by name."
        )
    return args, {**kwargs, str(key): edit_output(kwargs[str(key)], rest, edit, site=site)}


def argument_names(module: nn.Module) -> list[str]:
    """The names of the positional arguments of a module's forward, in order."""
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return [name for name, parameter in inspect.signature(module.forward).parameters.items() if parameter.kind in kinds]


def _is_dataclass(value: Any) -> bool:
    return dataclasses.is_dataclass(value) and not isinstance(value, Mapping)


def _describe(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    if isinstance(value, Mapping):
        return f"a {type(value).__name__} with the keys {preview(value)}"
    if _is_dataclass(value):
        return f"a {type(value).__name__} with the fields {preview(f.name for f in dataclasses.fields(value))}"
    if isinstance(value, tuple | list):
        return f"a {type(value).__name__} of {len(value)} ({', '.join(type(item).__name__ for item in value[:4])})"
    return f"a {type(value).__name__}"
