import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from fake_mnist import synthetic
from torch import Generator

from common.augment import random_affine
from common.datasets import Split
from common.errors import ExampleError
from mnist_vae import train as train_module
from mnist_vae.config import RECIPES, Config, Recipe
from mnist_vae.run import Run
from mnist_vae.train import Trainer, learning_rate, train

DATA = synthetic(120, seed=0)
EPOCHS = 3


@pytest.fixture(autouse=True)
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several steps an epoch, and a rest that does not fill a batch."""
    for name, recipe in list(RECIPES.items()):
        settings = {**vars(recipe), "batch_size": 32}
        monkeypatch.setitem(RECIPES, name, Recipe(**settings))


def config(seed: int = 0, *, routing: bool = True, epochs: int = EPOCHS) -> Config:
    return Config(seed=seed, routing=routing, epochs=epochs)


def trained(folder: Path, of: Config | None = None, data: Split = DATA) -> bytes:
    run = Run(folder)
    train(of or config(), data, run)
    return run.weights.read_bytes()


def interrupt_at(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    original = Trainer._step

    def interrupted(self: Trainer, number: int, *rest: object) -> list[float]:
        if number == step:
            raise KeyboardInterrupt
        return original(self, number, *rest)

    monkeypatch.setattr(Trainer, "_step", interrupted)


def test_same_seed_same_weights_and_another_seed_others(tmp_path: Path) -> None:
    first = trained(tmp_path / "first")
    assert trained(tmp_path / "same") == first
    assert trained(tmp_path / "other", config(seed=1)) != first


@pytest.mark.parametrize(("step", "resumed_after"), [(1, 0), (3, 1), (4, 1), (8, 2)])
def test_interrupted_and_resumed_is_bit_identical_to_uninterrupted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], step: int, resumed_after: int
) -> None:
    whole = trained(tmp_path / "whole")
    with monkeypatch.context() as patch:
        interrupt_at(step, patch)
        with pytest.raises(KeyboardInterrupt):
            trained(tmp_path / "resumed")
    assert not Run(tmp_path / "resumed").weights.exists()
    torch.rand(3)  # whatever the global generator did in between must not matter
    assert trained(tmp_path / "resumed") == whole
    points = [json.loads(Run(tmp_path / name).history.read_text())["points"] for name in ("whole", "resumed")]
    assert points[0] == points[1]
    assert not Run(tmp_path / "resumed").checkpoint.exists()
    said = capsys.readouterr().out
    assert [f"going on after epoch {n} of 3" in said for n in (1, 2)] == [resumed_after == n for n in (1, 2)]


def test_labels_change_nothing_without_routing_and_something_with_it(tmp_path: Path) -> None:
    shuffled = Split(DATA.images, DATA.labels.roll(1))
    plain = config(routing=False)
    assert trained(tmp_path / "a", plain) == trained(tmp_path / "b", plain, shuffled)
    assert trained(tmp_path / "c") != trained(tmp_path / "d", data=shuffled)


def test_a_finished_run_is_left_as_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trained(tmp_path)
    run = Run(tmp_path)
    before = run.weights.stat().st_mtime_ns
    capsys.readouterr()
    trained(tmp_path)
    assert run.weights.stat().st_mtime_ns == before
    assert "--fresh trains it anew" in capsys.readouterr().out
    train(config(), DATA, run, fresh=True)
    assert run.weights.stat().st_mtime_ns > before


def test_another_config_replaces_the_run_and_says_what_differs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trained(tmp_path)
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "metrics.json").write_text("{}")
    assert trained(tmp_path, config(seed=1, epochs=1)) == trained(tmp_path / "other", config(seed=1, epochs=1))
    said = capsys.readouterr().out
    assert "seed 0 -> 1\n  epochs 3 -> 1\n" in said
    assert not (tmp_path / "metrics.json").exists(), "metrics of the replaced run"
    assert (tmp_path / "notes.txt").exists(), "a file that is not the run's"


def test_an_interrupted_run_with_another_config_is_not_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        interrupt_at(7, patch)
        with pytest.raises(KeyboardInterrupt):
            trained(tmp_path / "run", config(seed=1))
    assert trained(tmp_path / "run") == trained(tmp_path / "other")


def test_what_is_left_without_a_config_is_not_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        interrupt_at(7, patch)
        with pytest.raises(KeyboardInterrupt):
            trained(tmp_path / "run", config(seed=1))
    Run(tmp_path / "run").config.unlink()
    assert trained(tmp_path / "run") == trained(tmp_path / "other")


def test_a_changed_recipe_is_not_mistaken_for_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained(tmp_path)
    monkeypatch.setitem(RECIPES, "default", Recipe(**{**vars(RECIPES["default"]), "learning_rate": 1e-4}))
    saved = json.loads(Run(tmp_path).config.read_text())
    assert config().differences(saved) == ["settings.learning_rate 0.004 -> 0.0001"]


@pytest.mark.parametrize("damage", [lambda content: content[:100], lambda _: b"", lambda _: b"not a checkpoint"])
def test_a_broken_checkpoint_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: Callable[[bytes], bytes]
) -> None:
    interrupt_at(4, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path)
    checkpoint = Run(tmp_path).checkpoint
    checkpoint.write_bytes(damage(checkpoint.read_bytes()))
    with pytest.raises(ExampleError, match=r"checkpoint\.pt cannot be resumed from .*--fresh"):
        trained(tmp_path)


def test_a_loss_that_is_not_finite_stops_the_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train_module, "random_affine", lambda images, _: images * torch.inf)
    with pytest.raises(ExampleError, match=r"the loss is .* at step 0"):
        trained(tmp_path)


def test_weights_are_readable_by_others(tmp_path: Path) -> None:
    trained(tmp_path, config(epochs=1))
    run = Run(tmp_path)
    assert run.weights.stat().st_mode == run.config.stat().st_mode


def test_one_cycle_rises_to_the_rate_and_falls_to_zero() -> None:
    rates = [learning_rate(RECIPES["default"], step, 100, 10) for step in range(1000)]
    assert max(rates) == rates[300] == RECIPES["default"].learning_rate
    assert rates[0] == pytest.approx(0.04 * rates[300])
    assert rates[:301] == sorted(rates[:301])
    assert rates[300:] == sorted(rates[300:], reverse=True)
    assert rates[-1] < 1e-4 * rates[300]


def test_original_rate_falls_by_5_percent_an_epoch() -> None:
    original = RECIPES["original"]
    rates = [learning_rate(original, step, 10, 100) for step in (0, 9, 10, 29)]
    assert rates == pytest.approx([1e-3, 1e-3, 0.95e-3, 0.95**2 * 1e-3])


def test_affine_without_amount_is_the_identity() -> None:
    images = torch.rand(5, 1, 28, 28)
    torch.testing.assert_close(random_affine(images, degrees=0, scale=0, shift=0), images, rtol=0, atol=1e-5)


def test_affine_moves_each_image_by_its_own_map_within_bounds() -> None:
    images = torch.zeros(64, 1, 28, 28)
    images[:, :, 13:15, 13:15] = 1
    moved = random_affine(images, Generator().manual_seed(0), degrees=0, scale=0, shift=2)
    rows = torch.arange(28.0).view(1, 28, 1)
    centres = (moved[:, 0] * rows).sum((1, 2)) / moved[:, 0].sum((1, 2)) - 13.5
    assert centres.abs().max() <= 2.01
    assert centres.abs().max() > 1.5
    assert centres.unique().numel() > 50
    assert 0 <= moved.min() <= moved.max() <= 1
    assert torch.equal(moved, random_affine(images, Generator().manual_seed(0), degrees=0, scale=0, shift=2))
