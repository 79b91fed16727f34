from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Generator, nn

from common.errors import ExampleError
from common.files import write_json
from common.resumable import Resumable, as_saved, finished, known_measures, save


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

    def train(self, until: int) -> None:
        with torch.no_grad():
            while self.steps < until:
                self.model.weight += torch.randn(self.settings.size, generator=self.draws)
                self.steps += 1


def test_what_is_saved_goes_on_bit_for_bit(tmp_path: Path) -> None:
    whole, first = Counting(Setting(), 0), Counting(Setting(), 0)
    whole.train(5)
    first.train(2)
    save(first, tmp_path / "runs" / "one.pt")
    second = as_saved(Counting(Setting(), 0), tmp_path / "runs" / "one.pt")
    assert second.done == second.steps == 2
    second.train(5)
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


def test_a_training_is_finished_once_and_saved_on_the_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, saved = tmp_path / "one.pt", []
    monkeypatch.setattr(
        "common.resumable.save", lambda trainer, path: (saved.append(trainer.done), save(trainer, path))
    )
    whole = finished(Counting(Setting(), 0), path, until=5, every=2, bar="steps")
    assert saved == [2, 4, 5]
    again = finished(Counting(Setting(), 0), path, until=3, every=2)
    assert (again.done, saved) == (5, [2, 4, 5])
    assert torch.equal(again.model.weight, whole.model.weight)
    seen: list[int] = []
    assert finished(Counting(Setting(), 0), path, until=6, every=2, look=lambda each: seen.append(each.done)).done == 6
    assert (saved, seen) == ([2, 4, 5, 6], [6])


def test_what_must_be_trained_and_is_not_is_named(tmp_path: Path) -> None:
    first = Counting(Setting(), 0)
    first.train(2)
    save(first, tmp_path / "one.pt")
    assert as_saved(Counting(Setting(), 0), tmp_path / "one.pt", at_least=2).done == 2
    for path, at_least in ((tmp_path / "one.pt", 3), (tmp_path / "none.pt", 1)):
        with pytest.raises(ExampleError, match=rf"there is no .*{path.name} that is trained\. Run `train`"):
            as_saved(Counting(Setting(), 0), path, at_least)


def test_measures_are_known_of_the_very_training_that_they_are_of(tmp_path: Path) -> None:
    @dataclass(frozen=True)
    class Several(Setting):
        several: tuple[int, ...] = (1, 2)  # of which JSON makes a list

    path, one = tmp_path / "one.json", Counting(Several(), 0)
    assert known_measures(path, one) is None
    write_json(path, {"loss": 2.5, "identity": one.identity()})
    found = known_measures(path, one)
    assert found is not None
    assert found["loss"] == 2.5
    for other in (Counting(Several(), 1), Counting(Several(several=(1, 3)), 0), Counting(Setting(), 0)):
        assert known_measures(path, other) is None
    write_json(path, {"loss": 2.5})
    assert known_measures(path, one) is None
