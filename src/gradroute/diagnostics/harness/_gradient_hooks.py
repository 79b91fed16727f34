"""`GradientHooks`: leaves the user's gradient hooks out of a run, or looks whether there are any."""

from __future__ import annotations

from collections import OrderedDict
from types import TracebackType
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from ... import _torch_private as private


class GradientHooks(TorchFunctionMode):
    """``with GradientHooks(model, leave_out=True)``: runs without the hooks that may change gradients.

    Such hooks are those on parameters and on other tensors (`Tensor.register_hook`), and backward hooks and backward
    pre-hooks of modules, of this model or of all modules. They are back in their places after the block.

    Args:
        model: The model.
        leave_out: Whether they are left out. With False they run, and are only looked for.

    Attributes:
        found: Whether there is one, or a step in the block registered one.
    """

    def __init__(self, model: nn.Module, *, leave_out: bool) -> None:
        super().__init__()
        self._model = model
        self._leave_out = leave_out
        self._kept: list[tuple[dict[Any, Any], dict[Any, Any]]] = []
        self.found = False

    def __enter__(self) -> GradientHooks:
        tables = private.gradient_hook_tables(self._model)
        theirs = [(table, {key: hook for key, hook in table.items() if _is_foreign(hook)}) for table in tables]
        self.found = any(hooks for _, hooks in theirs)
        if self._leave_out:
            self._kept = theirs
            for table, hooks in theirs:
                for key in hooks:
                    del table[key]
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, trace)  # type: ignore[no-untyped-call]
        for table, before in self._kept:
            table.update(before)
        self._kept = []

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if function is torch.Tensor.register_hook:
            self.found = True
            if self._leave_out:
                return torch.utils.hooks.RemovableHandle(OrderedDict())
        return function(*args, **(kwargs or {}))


def _is_foreign(hook: Any) -> bool:
    """Whether a hook is none of this library's, which only look."""
    return not (getattr(hook, "__module__", None) or "").startswith("gradroute.")
