"""Does each digit's slider draw its digit? Asked of the independent classifier."""

import torch
from torch import Tensor, nn

from mnist_vae.model import VAE
from mnist_vae.study.classifier import predict

STRENGTHS = (1.5, 2.0, 3.0, 4.0)


@torch.no_grad()
def recognised(model: VAE, classifier: nn.Module) -> Tensor:
    """What the classifier sees in each decoded s * e_d, [digit d, strength s in `STRENGTHS`]."""
    codes = model.pure(torch.tensor(STRENGTHS))
    return predict(classifier, model.decode(codes.flatten(0, 1))).view(codes.shape[:2])


def slider_accuracy(seen: Tensor) -> float:
    """The part of `recognised` that is the digit of its row."""
    return (seen == torch.arange(len(seen)).unsqueeze(1)).double().mean().item()
