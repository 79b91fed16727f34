"""Trainings that are saved in a file each, and go on from it bit for bit."""

from abc import ABC, abstractmethod
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

import torch

from common.errors import ExampleError
from common.files import replacing

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Condition = TypeVar("Condition", bound="DataclassInstance")
Settings = TypeVar("Settings", bound="DataclassInstance")


class Resumable(ABC, Generic[Condition, Settings]):
    """A training under a condition and settings, both dataclasses, that follows from them and from a seed."""

    condition: Condition
    settings: Settings
    seed: int
    #: Names of attributes that are plain values, and change in training.
    counts: ClassVar[tuple[str, ...]]

    @abstractmethod
    def parts(self) -> dict[str, Any]:
        """All else that changes in training: what has a ``state_dict``, and generators."""

    def identity(self) -> dict[str, Any]:
        """What the training depends on, apart from the code, the data and the machine."""
        condition = {key: value for key, value in asdict(self.condition).items() if key != "what"}
        return {"condition": condition, "settings": asdict(self.settings), "seed": self.seed}

    def state(self) -> dict[str, Any]:
        """All that it goes on from, of types that can be loaded without running code."""
        parts = {name: part.get_state() if _draws(part) else part.state_dict() for name, part in self.parts().items()}
        return {"run": self.identity(), "parts": parts, "counts": {name: getattr(self, name) for name in self.counts}}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a state, if it is of the same training; else stay as it is."""
        if state["run"] != self.identity():
            return
        for name, part in self.parts().items():
            (part.set_state if _draws(part) else part.load_state_dict)(state["parts"][name])
        vars(self).update(state["counts"])


def _draws(part: Any) -> bool:
    return isinstance(part, torch.Generator)


def save(trainer: Resumable[Any, Any], path: Path) -> None:
    with replacing(path) as temporary:
        torch.save(trainer.state(), temporary)


Trainer = TypeVar("Trainer", bound=Resumable[Any, Any])


def as_saved(trainer: Trainer, path: Path) -> Trainer:
    """The trainer, as far as its file says; a new one stays new where there is no file, or that of another training."""
    if path.is_file():
        try:
            trainer.restore(torch.load(path, weights_only=True))
        except Exception as error:  # of many kinds
            raise ExampleError(f"{path} cannot be read ({error}). Delete it.") from error
    return trainer
