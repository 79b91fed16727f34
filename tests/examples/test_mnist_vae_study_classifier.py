from pathlib import Path

import pytest
import torch
from fake_mnist import synthetic
from torch import Generator, Tensor, nn

from common.datasets import Split
from common.errors import ExampleError
from mnist_vae.config import Config
from mnist_vae.model import VAE, build_model
from mnist_vae.study import classifier
from mnist_vae.study.classifier import checked_accuracy, load_or_train, predict
from mnist_vae.study.sliders import STRENGTHS, recognised, slider_accuracy

DATA = synthetic(120, seed=0)


class Reader(nn.Module):
    """Sees what the first pixel says in tenths, or always the same."""

    def __init__(self, answer: int | None = None) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, images: Tensor) -> Tensor:
        digit = (images[:, 0, 0, 0] * 10).round().long().clamp(0, 9)
        return nn.functional.one_hot(digit if self.answer is None else digit * 0 + self.answer, 10).float()


class Drawer(VAE):
    """Writes in the first pixel which dimension is the largest, in tenths; of weak codes, always 0."""

    weakest = 0.0

    def decode(self, z: Tensor) -> Tensor:
        image = torch.zeros(len(z), 1, 28, 28)
        image[:, 0, 0, 0] = z.argmax(dim=1) / 10 * (z.amax(dim=1) >= self.weakest)
        return image


@pytest.fixture
def drawer() -> Drawer:
    template = build_model(Config())
    return Drawer(template.encoder, template.decoder)


def test_the_slider_metric_counts_digits_and_strengths(drawer: Drawer) -> None:
    assert len(STRENGTHS) == 4
    seen = recognised(drawer, Reader())
    assert seen.tolist() == [[digit] * 4 for digit in range(10)]
    assert slider_accuracy(seen) == 1
    assert slider_accuracy(recognised(drawer, Reader(answer=8))) == pytest.approx(4 / 40)
    drawer.weakest = 2
    assert slider_accuracy(recognised(drawer, Reader())) == pytest.approx((30 + 1) / 40), "at 1.5, only the 0 is right"


def trainings(monkeypatch: pytest.MonkeyPatch) -> list[Split]:
    """Filled with the split of each training from now on."""
    calls: list[Split] = []
    original = classifier._train

    def counted(model: nn.Module, train: Split, training: classifier.Training) -> None:
        calls.append(train)
        original(model, train, training)

    monkeypatch.setattr(classifier, "_train", counted)
    return calls


def test_it_is_trained_once_per_data_set_and_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = trainings(monkeypatch)
    images = torch.rand(5, 1, 28, 28)
    first = load_or_train(DATA, tmp_path)
    same = load_or_train(DATA, tmp_path)
    assert len(calls) == 1
    assert torch.equal(first(images), same(images))
    assert not first.training
    load_or_train(Split(DATA.images, DATA.labels.roll(1)), tmp_path)
    load_or_train(synthetic(120, seed=1), tmp_path)
    monkeypatch.setattr(classifier, "TRAINING", classifier.Training(steps=2, batch_size=40))
    load_or_train(DATA, tmp_path)
    assert len(calls) == 4
    assert len(list((tmp_path / "classifier").iterdir())) == 4


def test_without_a_folder_it_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = trainings(monkeypatch)
    load_or_train(DATA, None)
    load_or_train(DATA, None)
    assert len(calls) == 2


def test_a_broken_file_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load_or_train(DATA, tmp_path)
    (path,) = (tmp_path / "classifier").iterdir()
    content = path.read_bytes()
    path.write_bytes(content[:100])
    calls = trainings(monkeypatch)
    load_or_train(DATA, tmp_path)
    assert len(calls) == 1
    assert path.read_bytes() == content


def test_training_leaves_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    load_or_train(DATA, None)
    assert torch.equal(torch.get_rng_state(), before)


def test_it_learns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(classifier, "TRAINING", classifier.Training(steps=40, batch_size=60))
    model = load_or_train(DATA, None)
    assert checked_accuracy(model, synthetic(40, seed=1), "mnist") > 0.9


def test_it_reads_shapes_however_strongly_they_are_drawn() -> None:
    model = load_or_train(DATA, None)
    images = torch.rand(50, 1, 28, 28, generator=Generator().manual_seed(0))
    torch.testing.assert_close(model(0.05 * images + 0.1), model(images), rtol=1e-3, atol=1e-3)


def test_bytes_and_numbers_are_read_alike() -> None:
    model = load_or_train(DATA, None)
    assert torch.equal(predict(model, DATA.images), predict(model, DATA.images.float() / 255))


def test_one_that_cannot_be_relied_on_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(classifier, "REQUIRED", {"mnist": 0.99})
    with pytest.raises(ExampleError, match=r"has 10\.00% on the test set; at least 99% is expected"):
        checked_accuracy(Reader(answer=8), DATA, "mnist")
    assert checked_accuracy(Reader(answer=8), DATA, "kmnist") == pytest.approx(0.1)
