import pytest
import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from mnist_vae.study.linear_probe import best_permutation_accuracy, probe_accuracy


@pytest.fixture
def labels() -> Tensor:
    return torch.randint(10, (400,), generator=Generator().manual_seed(0))


@pytest.fixture
def scores(labels: Tensor) -> Tensor:
    """Right for most images: the digit's own unit is loud, in noise."""
    return 2 * F.one_hot(labels, 10) + torch.randn(400, 10, generator=Generator().manual_seed(1))


def test_best_permutation_does_not_depend_on_the_order_of_dimensions(scores: Tensor, labels: Tensor) -> None:
    plain = (scores.argmax(dim=1) == labels).double().mean().item()
    assert 0.5 < plain < 0.95
    assert best_permutation_accuracy(scores, labels) == plain
    for seed in range(5):
        order = torch.randperm(10, generator=Generator().manual_seed(seed))
        assert best_permutation_accuracy(scores[:, order], labels) == plain


def test_best_permutation_names_each_dimension_once(labels: Tensor) -> None:
    everything_on_one = torch.zeros(400, 10).index_fill(1, torch.tensor(7), 1.0)
    commonest = torch.bincount(labels).max().item() / 400
    assert best_permutation_accuracy(everything_on_one, labels) == commonest


def test_best_permutation_is_no_worse_than_none(labels: Tensor) -> None:
    for seed in range(5):
        scores = torch.randn(400, 10, generator=Generator().manual_seed(seed))
        assert best_permutation_accuracy(scores, labels) >= (scores.argmax(dim=1) == labels).double().mean().item()


def test_the_probe_reads_any_linear_code_and_nothing_from_noise(scores: Tensor, labels: Tensor) -> None:
    clear = F.one_hot(labels, 10) + 0.1 * scores
    mixed = clear @ torch.randn(10, 10, generator=Generator().manual_seed(2)) + 5
    assert probe_accuracy(clear[:300], labels[:300], clear[300:], labels[300:]) > 0.98
    assert probe_accuracy(mixed[:300], labels[:300], mixed[300:], labels[300:]) > 0.98
    noise = torch.randn(400, 10, generator=Generator().manual_seed(3))
    assert probe_accuracy(noise[:300], labels[:300], noise[300:], labels[300:]) < 0.3


def test_the_probe_is_fitted_to_the_training_part_alone(scores: Tensor, labels: Tensor) -> None:
    shuffled = labels[:300][torch.randperm(300, generator=Generator().manual_seed(0))]
    assert probe_accuracy(scores[:300], shuffled, scores[300:], labels[300:]) < 0.4
