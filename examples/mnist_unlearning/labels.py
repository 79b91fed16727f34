"""Who knows what of the training images: "forget", "retain", or nothing."""

import torch
from torch import Generator, Tensor

import gradroute as gr
from common.label_fraction import PLACEBO, unlabeled_images
from mnist_unlearning.config import Condition

#: Ids of the two labels in the spec of `mnist_unlearning.model`.
RETAIN, FORGET = 0, 1


def known_labels(digits: Tensor, digit: int, condition: Condition, seed: int) -> Tensor:
    """`RETAIN`, `FORGET` or `gr.UNLABELED` for each training image, the same in every epoch.

    The fraction is that of images which somebody has looked at, whatever they show: were all other digits labeled
    "retain", then "not labeled" would give the digit away. With the same seed, a smaller fraction is a part of a larger
    one. The placebo calls as many images "forget" as show the digit, drawn without looking at them.
    """
    forget = digits == digit
    if condition.labels == "random":
        drawn = torch.randperm(len(digits), generator=Generator().manual_seed(PLACEBO + seed))
        forget = torch.zeros_like(forget).index_fill(0, drawn[: int(forget.sum())], value=True)
    unknown = unlabeled_images(len(digits), condition.fraction, seed)
    return torch.where(forget, FORGET, RETAIN).index_fill(0, unknown, gr.UNLABELED)
