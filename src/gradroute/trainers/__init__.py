"""Trainers of other libraries, with backward inside of the ``with router(labels)`` block.

`RoutedTrainer` is transformers' `Trainer`. `RoutedTrainerMixin` makes the same of its subclasses, such as TRL's
`SFTTrainer`, and `RoutedRolloutsMixin` of those that make their own examples, such as TRL's `GRPOTrainer`.
`RoutedCallback` is for Lightning.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from ._label_collator import LabelCollator
from ._mixin import RoutedTrainerMixin
from ._rollouts import RoutedRolloutsMixin

if TYPE_CHECKING:
    from ._lightning import RoutedCallback
    from ._routed_trainer import RoutedTrainer

__all__ = ["LabelCollator", "RoutedCallback", "RoutedRolloutsMixin", "RoutedTrainer", "RoutedTrainerMixin"]

#: What needs another library, and is not loaded before it is asked for.
_LAZY = {"RoutedCallback": "_lightning", "RoutedTrainer": "_routed_trainer"}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_LAZY[name]}"), name)
