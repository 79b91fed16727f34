"""Trainings that are saved in a file each, and go on from it bit for bit."""

import json
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

import torch
from tqdm import tqdm  # type: ignore[import-untyped]

from common.errors import ExampleError
from common.files import read_json, replacing

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Condition = TypeVar("Condition", bound="DataclassInstance")
Settings = TypeVar("Settings", bound="DataclassInstance")


class Resumable(ABC, Generic[Condition, Settings]):
    """A training under a condition and settings, both dataclasses, that follows from them and from a seed."""

    condition: Condition
    settings: Settings
    seed: int
    #: Names of attributes that are plain values, and change in training; the first counts how far it has come.
    counts: ClassVar[tuple[str, ...]]

    @abstractmethod
    def parts(self) -> dict[str, Any]:
        """All else that changes in training: what has a ``state_dict``, and generators."""

    @abstractmethod
    def train(self, until: int) -> None:
        """Go on until it has come so far."""

    @property
    def done(self) -> int:
        """How far it has come."""
        return int(getattr(self, self.counts[0]))

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


def as_saved(trainer: Trainer, path: Path, at_least: int = 0) -> Trainer:
    """The trainer, as far as its file says; a new one stays new where there is no file, or that of another training.

    Raises:
        ExampleError: The file cannot be read, or it has not come as far as it must.
    """
    if path.is_file():
        try:
            trainer.restore(torch.load(path, weights_only=True))
        except Exception as error:  # of many kinds
            raise ExampleError(f"{path} cannot be read ({error}). Delete it.") from error
    if trainer.done < at_least:
        raise ExampleError(f"there is no {path} that is trained. Run `train` with the same flags first.")
    return trainer


def finished(
    trainer: Trainer,
    path: Path,
    until: int,
    every: int,
    *,
    bar: str | None = None,
    look: Callable[[Trainer], None] = lambda trainer: None,
) -> Trainer:
    """The trainer when it has come at least so far; it goes on from its file, and is saved there now and then.

    Args:
        trainer: A new one.
        path: Of its file.
        until: How far.
        every: It is saved whenever it has come so much further.
        bar: The name of a bar that shows how far it is; None where others train beside.
        look: Is called each time before it is saved.
    """
    as_saved(trainer, path)
    with tqdm(total=until, initial=trainer.done, desc=bar, disable=None if bar else True) as shown:
        while trainer.done < until:
            trainer.train(min(until, trainer.done + every))
            look(trainer)
            save(trainer, path)
            shown.update(trainer.done - shown.n)
    return trainer


def known_measures(path: Path, trainer: Resumable[Any, Any]) -> dict[str, Any] | None:
    """What a file says was measured of a training, under "identity" of which; None if of another, or of none."""
    measures: dict[str, Any] = read_json(path) if path.is_file() else {}
    same = measures.get("identity") == json.loads(json.dumps(trainer.identity()))  # which makes lists of tuples
    return measures if same else None
