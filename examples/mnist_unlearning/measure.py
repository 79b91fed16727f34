"""Accuracy on the digit to forget, and on the nine others."""

import torch
from torch import nn

from mnist_unlearning.images import pixels
from mnist_vae.data import Split


@torch.no_grad()
def accuracy(model: nn.Module, split: Split, digit: int) -> dict[str, float]:
    """How often each digit is named right: ``forgotten`` for the one, ``kept`` for images of the nine others."""
    named = torch.cat([model(pixels(batch)).argmax(1) for batch in torch.split(split.images, 2000)])
    right, own = named == split.labels, split.labels == digit
    return {"forgotten": right[own].double().mean().item(), "kept": right[~own].double().mean().item()}
