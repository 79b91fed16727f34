"""One tensor in a module's nested output or arguments: found by its path, and edited in a copy of what holds it."""

from __future__ import annotations

import copy
import dataclasses
import inspect
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from torch import Tensor, nn

from ..errors import SiteError, preview

Key: TypeAlias = int | str
"""A part of what a module returns or takes: a position, a key, or the name of a field or argument."""


Edit: TypeAlias = Callable[[Tensor], Tensor]


def edit_output(output: Any, path: tuple[Key, ...], edit: Edit, *, site: str) -> Any:
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
    return _with(output, step, inner, edited)


def edit_arguments(
    args: tuple[Any, ...], kwargs: dict[str, Any], path: tuple[Key, ...], names: list[str], edit: Edit, *, site: str
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
    if isinstance(value, (tuple, list)):
        return f"a {type(value).__name__} of {len(value)} ({', '.join(type(item).__name__ for item in value[:4])})"
    return f"a {type(value).__name__}"


def any_requires_grad(tensors: Any) -> bool:
    """Whether a tensor in nested tuples, lists, dicts and dataclasses requires gradients."""
    if isinstance(tensors, Tensor):
        return tensors.requires_grad
    return any(any_requires_grad(inner) for inner in parts_of(tensors))


def parts_of(nest: Any) -> tuple[Any, ...]:
    """What a tuple, list, dict or dataclass holds; nothing of anything else."""
    if isinstance(nest, Mapping):
        return tuple(nest.values())
    if _is_dataclass(nest) and not isinstance(nest, type):
        return tuple([getattr(nest, field.name) for field in dataclasses.fields(nest)])
    return tuple(nest) if isinstance(nest, (tuple, list)) else ()


def map_tensors(nest: Any, function: Edit) -> Any:
    """Nested tuples, lists, dicts and dataclasses with a function applied to each tensor in them.

    What holds no tensor that changed is returned as it is; what does is copied.
    """
    if isinstance(nest, Tensor):
        return function(nest)
    if isinstance(nest, Mapping):
        steps: list[Key] = list(nest)
    elif isinstance(nest, (tuple, list)):
        steps = list(range(len(nest)))
    elif _is_dataclass(nest) and not isinstance(nest, type):
        steps = [field.name for field in dataclasses.fields(nest)]
    else:
        return nest
    for step in steps:
        inner = getattr(nest, str(step)) if _is_dataclass(nest) else nest[step]
        mapped = map_tensors(inner, function)
        if mapped is not inner:
            nest = _with(nest, step, inner, mapped)
    return nest


def tensors_of(nest: Any) -> list[Tensor]:
    """The tensors in nested containers, in the order of `map_tensors`."""
    found: list[Tensor] = []

    def keep(x: Tensor) -> Tensor:
        found.append(x)
        return x

    map_tensors(nest, keep)
    return found


def _with(nest: Any, step: Key, before: Any, after: Any) -> Any:
    """A copy of what holds tensors, with another thing at one place: also where that is an attribute as well."""
    if isinstance(nest, tuple):
        return _tuple_with(nest, int(step), before, after)
    if isinstance(nest, Mapping) and dataclasses.is_dataclass(nest):
        return type(nest)(**{**nest, step: after})  # transformers' ModelOutput: both, and its keys are its fields
    if dataclasses.is_dataclass(nest):
        changed = dataclasses.replace(nest, **{str(step): after})  # type: ignore[type-var]
        return _with_attributes_of(nest, changed, before, after)  # its fields are not all that it may have
    if type(nest) is dict:
        return {**nest, step: after}
    if type(nest) is list:
        return [after if i == int(step) % len(nest) else item for i, item in enumerate(nest)]
    changed = copy.copy(nest)
    changed[step] = after
    if nest[step] is after and after is not before:  # a copy that is none
        nest[step] = before
        raise SiteError(
            f"a {type(nest).__name__} is changed with its copy (copy.copy), and so what the module keeps would be: let "
            "it return a tuple, list, dict or dataclass, or put the site on a module inside of it."
        )
    return _with_attributes_of(nest, changed, before, after)


def _tuple_with(nest: tuple[Any, ...], step: int, before: Any, after: Any) -> Any:
    items = [after if i == step % len(nest) else item for i, item in enumerate(nest)]
    if type(nest) is tuple:
        return tuple(items)
    if hasattr(nest, "_fields"):
        return type(nest)(*items)
    if hasattr(nest, "n_fields"):  # `torch.return_types`
        return type(nest)(items)
    return _with_attributes_of(nest, tuple.__new__(type(nest), items), before, after)


def _with_attributes_of(nest: Any, changed: Any, before: Any, after: Any) -> Any:
    """What holds tensors, with all attributes that it had: some dicts are their own, some lists name their items."""
    held = getattr(changed, "__dict__", {})
    for name, value in list(getattr(nest, "__dict__", {}).items()):
        if name not in held or (value is before and held[name] is before):
            object.__setattr__(changed, name, after if value is before else value)
    return changed
