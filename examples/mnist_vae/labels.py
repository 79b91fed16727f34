"""The labels that route: the digits, fewer of them, or none of them."""

import torch
from torch import Tensor

import gradroute as gr
from common.label_fraction import PLACEBO, unlabeled_images
from mnist_vae.config import Config


def routing_labels(labels: Tensor, config: Config) -> Tensor:
    """What training routes by, one label per training image, the same in every epoch and after every interruption.

    Placebo labels are drawn once per image and know nothing of the digits. Of either kind, `label_fraction` are kept
    and the others are `gr.UNLABELED`. With the same seed, a smaller fraction keeps a part of what a larger one does.
    """
    count = len(labels)
    if config.labels == "random":
        generator = torch.Generator().manual_seed(PLACEBO + config.seed)
        labels = torch.randint(10, (count,), generator=generator)
    return labels.index_fill(0, unlabeled_images(count, config.label_fraction, config.seed), gr.UNLABELED)
