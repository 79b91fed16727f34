"""Which training images have a label, where only a part of them does."""

import torch
from torch import Generator, Tensor

#: Added to a run's seed, so that these draws are not those of weights and batches; `PLACEBO`, for labels drawn by lot.
LABELED, PLACEBO = 1_000_000_007, 2_000_000_011


def unlabeled_images(count: int, fraction: float, seed: int) -> Tensor:
    """The indices of the images that have no label: all but a fraction of them, drawn by lot.

    The same in every epoch and after every interruption. With the same seed, a smaller fraction labels a part of the
    images that a larger one does.
    """
    order = torch.randperm(count, generator=Generator().manual_seed(LABELED + seed))
    return order[round(fraction * count) :]
