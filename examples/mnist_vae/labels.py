"""The labels that route: the digits, fewer of them, or none of them."""

import torch
from torch import Tensor

import gradroute as gr
from mnist_vae.config import Config

#: Added to the run's seed, so that these draws are not those of weights and batches.
KEPT, PLACEBO = 1_000_000_007, 2_000_000_011


def routing_labels(labels: Tensor, config: Config) -> Tensor:
    """What training routes by, one label per training image, the same in every epoch and after every interruption.

    Placebo labels are drawn once per image and know nothing of the digits. Of either kind, `label_fraction` are kept
    and the others are `gr.UNLABELED`. With the same seed, a smaller fraction keeps a part of what a larger one does.
    """
    count = len(labels)
    if config.labels == "random":
        generator = torch.Generator().manual_seed(PLACEBO + config.seed)
        labels = torch.randint(10, (count,), generator=generator)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(KEPT + config.seed))
    unlabeled = order[round(config.label_fraction * count) :]
    return labels.index_fill(0, unlabeled, gr.UNLABELED)
