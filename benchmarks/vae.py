"""Training steps of the example's VAE, with and without its one routed activation, on the same weights."""

import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from steps import UNROUTED, TrainStep

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "examples"))
from mnist_vae.config import RECIPES, Config
from mnist_vae.model import SIDE, VAE, build_model

ROUTED = "routed latent"


def vae_steps(device: torch.device, *, compiled: bool) -> dict[str, TrainStep]:
    """The layers, loss and batch size of the default recipe, on noise in place of digits."""
    batch = RECIPES["default"].batch_size
    routed = build_model(Config()).to(device)
    unrouted = VAE(routed.encoder, routed.decoder, routing=False)
    images = torch.rand(batch, 1, SIDE, SIDE, device=device)
    labels = torch.randint(0, 10, (batch,), device=device)

    def loss_of(model: VAE) -> Callable[[], Tensor]:
        losses = torch.compile(model.losses, dynamic=False) if compiled else model.losses
        return lambda: losses(images, labels).total

    step = TrainStep(unrouted, loss_of(unrouted))
    return {UNROUTED: step, ROUTED: TrainStep(routed, loss_of(routed), step.optimizer)}
