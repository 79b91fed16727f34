"""Finds in an optimizer's state what belongs to single units, and what it would be for units that no step touched."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from numbers import Number
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.optim import LBFGS, Adafactor, Optimizer

from ..errors import UsageError

Arguments: TypeAlias = "tuple[tuple[Any, ...], dict[str, Any]]"
"""Of an optimizer's step: by position and by name."""
OWN = "own_steps"
"""Where a parameter's state has what each unit counts by itself; see `OwnSteps`."""


def refuse_inner(optimizer: Optimizer) -> None:
    """Refuse an optimizer that keeps its state in another optimizer.

    Raises:
        UsageError: It does.
    """
    for name, value in vars(optimizer).items():
        if isinstance(value, Optimizer):
            raise UsageError(
                f"{type(optimizer).__name__} leaves its steps to another optimizer, whose state it does not show: use "
                f"the inner optimizer, .{name}."
            )


def refuse_mixing(optimizer: Optimizer, parameters: set[nn.Parameter]) -> None:
    """Refuse an optimizer in which units are known to share state, or which keeps its state in another optimizer.

    Raises:
        UsageError: It is one.
    """
    refuse_inner(optimizer)
    if isinstance(optimizer, LBFGS):
        raise _mixes(optimizer, "its history of whole gradients")
    if isinstance(optimizer, Adafactor) and any(parameter.ndim > 1 for parameter in parameters):
        raise _mixes(optimizer, "its second moments of rows and columns")


def refuse_own_counts(optimizer: Optimizer, parameter: Tensor) -> None:
    """Refuse state in which each unit counts its own steps, where one count is meant.

    Raises:
        UsageError: It is such.
    """
    if OWN in optimizer.state.get(parameter, {}):
        raise UsageError(
            "this optimizer's state counts the steps of each unit by itself, as under Isolation(own_steps=True): make "
            "the isolation with own_steps=True, or remove the isolation that counts."
        )


def state_of_units(optimizer: Optimizer, parameter: Tensor) -> dict[str, Tensor]:
    """The tensors in a parameter's state that have an entry for each of its own; single numbers are shared.

    Raises:
        UsageError: There is state of another form, which units may share.
    """
    found = {}
    refuse_own_counts(optimizer, parameter)
    for key, value in optimizer.state.get(parameter, {}).items():
        if isinstance(value, Tensor):
            if value.shape == parameter.shape:
                found[key] = value
            elif value.numel() > 1:
                raise _mixes(
                    optimizer, f"{key!r} of shape {tuple(value.shape)} for a parameter of {tuple(parameter.shape)}"
                )
        elif not isinstance(value, Number | str | None):
            raise _mixes(optimizer, f"{key!r}, a {type(value).__name__}")
    return found


def state_of_entries(
    optimizer: Optimizer, parameter: Tensor, has_rows_of: Callable[[Tensor], bool]
) -> dict[str, Tensor]:
    """The tensors in a parameter's state that have an entry for each of its own, or for each of its rows.

    Such as are flat, as Prodigy's, come as views in the parameter's shape. The factors of Adafactor are among them
    where `has_rows_of` says so, and are left out where not, as are single numbers.

    Raises:
        UsageError: There is state of which it is not known what belongs to an entry.
    """
    found = {}
    state = optimizer.state.get(parameter, {})
    counted = {OWN, *state.get(OWN, ())}  # by an isolation, for each unit
    for key, value in state.items():
        if key in counted:
            continue
        if isinstance(value, Tensor) and value.shape == parameter.shape:
            found[key] = value
        elif isinstance(value, Tensor) and value.ndim == 1 and value.numel() == parameter.numel() > 1:
            found[key] = value.view(parameter.shape)
        elif isinstance(optimizer, Adafactor) and key in ("row_var", "col_var"):
            if has_rows_of(value):
                found[key] = value
        elif not isinstance(value, Tensor | Number | str | None) or (isinstance(value, Tensor) and value.numel() > 1):
            shape = f"of shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
            raise UsageError(
                f"{type(optimizer).__name__} cannot hold entries of a parameter of shape {tuple(parameter.shape)}: of "
                f"its state {key!r}, {shape}, it is not known what belongs to an entry. Use an optimizer whose state "
                "has the shapes of the parameters, such as AdamW."
            )
    return found


def untouched_state(optimizer: Optimizer, parameter: Tensor, values: Tensor) -> dict[str, Tensor]:
    """The state that a step makes for these values of a parameter from zero gradients, and without weight decay.

    Zeros would be right for most optimizers, but not for the step sizes of Rprop or for a copy of the weights.

    Raises:
        UsageError: No second optimizer of the kind, to tell what the state is, can be made.
    """
    group = next(group for group in optimizer.param_groups if any(p is parameter for p in group["params"]))
    probe = nn.Parameter(values.clone())
    probe.grad = torch.zeros_like(probe)
    if parameter.grad is not None and parameter.grad.is_sparse:
        probe.grad = probe.grad.to_sparse()
    known = inspect.signature(type(optimizer)).parameters
    options = {key: value for key, value in group.items() if key in known and key != "params"}
    if "weight_decay" in options:
        options["weight_decay"] = 0.0
    try:
        twin = type(optimizer)([probe], **options)
        twin.step()
    except Exception as error:
        raise UsageError(
            f"this step of {type(optimizer).__name__} created state for units that nobody taught, and what that should "
            f"be cannot be found out: a second {type(optimizer).__name__} of the same options, to be tried on zero "
            f"gradients, cannot be made ({type(error).__name__}: {error}). Take the optimizer's first step before the "
            "isolation is made."
        ) from error
    return state_of_units(twin, probe)


def closure_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What a step is to call for its loss; None where gradients are there already."""
    return args[1] if len(args) > 1 else kwargs.get("closure")  # the first argument is the optimizer


def after_closure(args: tuple[Any, ...], kwargs: dict[str, Any], then: Callable[[], None]) -> Arguments | None:
    """For a hook before a step: run `then` when the gradients are there, and before the optimizer writes.

    That is now, and nothing is returned; or after the closure that computes them, and the step's arguments are returned
    with one that does so whenever the optimizer evaluates it.
    """
    closure = closure_of(args, kwargs)
    if closure is None:
        then()
        return None

    def closure_and_then() -> Any:
        loss = closure()
        then()
        return loss

    if len(args) > 1:
        return (args[0], closure_and_then, *args[2:]), kwargs
    return args, {**kwargs, "closure": closure_and_then}


def _mixes(optimizer: Optimizer, what: str) -> UsageError:
    return UsageError(
        f"{type(optimizer).__name__} cannot be isolated: units share its state, {what}, so that what one unit learns "
        "changes another's. Use an optimizer whose state has the shapes of the parameters, such as AdamW."
    )
