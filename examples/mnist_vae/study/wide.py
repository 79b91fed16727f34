"""Several latent units per digit: the plain way, and the one with a presence unit.

A slice of z belongs to each digit, and units that all digits share may follow. The reconstruction of an image teaches
its digit's slice and the shared units. Routing is that of `mnist_vae.model`; what differs is how the decoder reads z.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import gradroute as gr
from mnist_vae.config import Recipe
from mnist_vae.model import DIGITS, SIDE, VAE

#: A presence settles near 15, with the recipe's weights of the KL, where a digit's only unit settles near 3.
LOUDNESS = 4.0


class SliceVAE(VAE):
    """The plain way: every unit is clipped at zero, as the single ones are. It does not scale; see the README."""

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        spec: gr.RoutingSpec,
        recipe: Recipe,
        *,
        routing: bool = True,
        loudest: bool = False,
    ) -> None:
        weight = self.weigh_kl(spec, recipe)
        super().__init__(encoder, decoder, spec, routing=routing, loudest=loudest, kl_weight=weight)
        self.units = recipe.units

    def weigh_kl(self, spec: gr.RoutingSpec, recipe: Recipe) -> float | Tensor:
        """The weight of the KL in the loss: one number, or one for each unit."""
        return recipe.kl_weight

    def scores(self, z: Tensor) -> Tensor:
        """The norm of each digit's slice, as the decoder reads it."""
        norm: Tensor = torch.linalg.vector_norm(self._slices(F.relu(z)), dim=2)
        return norm

    def pure(self, strengths: Tensor) -> Tensor:
        z = torch.zeros(DIGITS.width, len(strengths), self.spec.width)
        for digit in range(DIGITS.width):
            z[digit, :, list(self.spec.indices(digit))] = (strengths / self.units**0.5).unsqueeze(1)
        return z

    def _slices(self, z: Tensor) -> Tensor:
        """The digits' units [N, 10, units], without the shared ones."""
        return z[:, : DIGITS.width * self.units].reshape(-1, DIGITS.width, self.units)


class PresenceVAE(SliceVAE):
    """The first unit of each slice says how strongly its digit is there; the others say in which style.

    The decoder reads a slice ``(a, s)`` as ``relu(a) * (1, s)``, and a shared style as multiplied by the sum of all
    ``relu(a)``. Hence

    - a style unit may speak in both directions, and is nothing without a presence: a digit cannot be drawn by styles
      alone, whether its own, another's or shared ones;
    - with its presence at one strength, a digit's style has an origin: the digit's plain form, with no style at all;
    - a code with no presence above zero decodes to a blank page, as in the plain model.

    No label is in this: what is present is the encoder's say, and routing decides which slice learns from it.
    """

    def weigh_kl(self, spec: gr.RoutingSpec, recipe: Recipe) -> Tensor:
        """The presence units' own weight for them, and the recipe's for all others."""
        weight = torch.full((spec.width,), recipe.kl_weight)
        weight[: DIGITS.width * recipe.units : recipe.units] = recipe.presence_kl_weight
        return weight

    def scores(self, z: Tensor) -> Tensor:
        """The norm of what the decoder reads of each digit's slice."""
        norm: Tensor = torch.linalg.vector_norm(self._read(z)[0], dim=2)
        return norm

    def pure(self, strengths: Tensor) -> Tensor:
        z = torch.zeros(DIGITS.width, len(strengths), self.spec.width)
        for digit in range(DIGITS.width):
            z[digit, :, digit * self.units] = LOUDNESS * strengths
        return z

    def decode_logits(self, z: Tensor) -> Tensor:
        slices, shared = self._read(z)
        logits: Tensor = self.decoder(torch.cat([slices.flatten(1), shared], dim=1))
        return logits.view(-1, 1, SIDE, SIDE)

    def _read(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """The slices [N, 10, units] and the shared units, as the decoder reads them."""
        slices = self._slices(z)
        presence = F.relu(slices[:, :, :1])
        read = presence * torch.cat([torch.ones_like(presence), slices[:, :, 1:]], dim=2)
        return read, z[:, DIGITS.width * self.units :] * presence.sum(dim=1)
