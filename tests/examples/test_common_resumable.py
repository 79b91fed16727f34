from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Generator, nn

from common.errors import ExampleError
from common.resumable import Resumable, as_saved, save


@dataclass(frozen=True)
class Setting:
    size: int = 3


@dataclass(frozen=True)
class Row:
    what: str = "said of it, and of no effect"


class Counting(Resumable[Row, Setting]):
    """Adds draws to a weight, and counts."""

    counts = ("steps",)

    def __init__(self, settings: Setting, seed: int, condition: Row | None = None) -> None:
        self.condition, self.settings = condition or Row(), settings
        self.seed, self.steps = seed, 0
        self.model = nn.Linear(settings.size, 1)
        self.draws = Generator().manual_seed(seed)
        nn.init.zeros_(self.model.weight)

    def parts(self) -> dict[str, Any]:
        return {"model": self.model, "draws": self.draws}

    def train(self, steps: int) -> None:
        with torch.no_grad():
            for _ in range(steps):
                self.model.weight += torch.randn(self.settings.size, generator=self.draws)
                self.steps += 1


def test_what_is_saved_goes_on_bit_for_bit(tmp_path: Path) -> None:
    whole, first = Counting(Setting(), 0), Counting(Setting(), 0)
    whole.train(5)
    first.train(2)
    save(first, tmp_path / "runs" / "one.pt")
    second = as_saved(Counting(Setting(), 0), tmp_path / "runs" / "one.pt")
    assert second.steps == 2
    second.train(3)
    assert second.steps == whole.steps
    assert torch.equal(second.model.weight, whole.model.weight)
    assert not torch.equal(second.model.weight, first.model.weight)


def test_a_file_of_another_training_or_none_leaves_it_new(tmp_path: Path) -> None:
    first = Counting(Setting(), 0)
    first.train(2)
    save(first, tmp_path / "one.pt")
    for other in (Counting(Setting(4), 0), Counting(Setting(), 1)):
        assert as_saved(other, tmp_path / "one.pt").steps == 0
    assert as_saved(Counting(Setting(), 0), tmp_path / "none.pt").steps == 0
    assert as_saved(Counting(Setting(), 0, Row("other words")), tmp_path / "one.pt").steps == 2


def test_what_is_no_saved_training_is_named(tmp_path: Path) -> None:
    (tmp_path / "one.pt").write_text("no weights")
    with pytest.raises(ExampleError, match=r"(?s)one.pt cannot be read .* Delete it"):
        as_saved(Counting(Setting(), 0), tmp_path / "one.pt")
