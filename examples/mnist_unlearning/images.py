"""MNIST in four parts: to train on, to relearn from, to choose settings on, and the test set."""

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from common.datasets import Dataset, Split
from mnist_unlearning.model import DIGITS

#: Parts of the training set that training never sees, out of 60,000: for relearning, and for choosing settings.
RELEARN = VALIDATION = 5_000 / 60_000
_SHUFFLE = 0


@dataclass(frozen=True)
class Parts:
    """Images as uint8 [N, 1, 28, 28] and digits."""

    train: Split
    relearn: Split
    judge: Split  #: What accuracy is measured on.
    judged_on: str = "test"

    def few_of_each(self, count: int) -> Split:
        """The first so many images of each digit among those for relearning."""
        labels = self.relearn.labels
        pick = [(labels == digit).nonzero().flatten()[:count] for digit in range(DIGITS)]
        return take(self.relearn, torch.cat(pick))


def parts(data: Dataset, *, validation: bool = False) -> Parts:
    """Cut the training set in the same way each time, whatever the seed of a run.

    Args:
        data: Training and test set.
        validation: Measure on the part held out for choosing settings, in place of the test set.
    """
    count = len(data.train)
    order = torch.randperm(count, generator=Generator().manual_seed(_SHUFFLE))
    held_out, relearn = round(VALIDATION * count), round(RELEARN * count)
    pick = torch.split(order, [count - relearn - held_out, relearn, held_out])
    train, relearning, judge = (take(data.train, index) for index in pick)
    if validation:
        return Parts(train, relearning, judge, "validation")
    return Parts(train, relearning, data.test)


def take(split: Split, index: Tensor) -> Split:
    return Split(split.images[index], split.labels[index])


def pixels(images: Tensor) -> Tensor:
    """Bytes [N, 1, 28, 28] as numbers in [0, 1], [N, 784]."""
    return images.flatten(1).float() / 255
