"""The variational autoencoder, and the one place where gradients are routed.

Ten latent dimensions, one per digit. The forward pass knows no labels: the loss is the negative ELBO and nothing else.
Labels only choose, in the backward pass, which latent dimension an image's reconstruction may teach.

Where the KL sits: behind the encoder but before the route, so its gradient reaches all ten dimensions of every image.
It holds no label: it pulls each dimension of each image towards the prior, "say nothing". Routing the reconstruction
lets one dimension, and only that one, learn to speak against it. If the KL is routed too (recipe ``routed-kl``), no
image ever tells a foreign dimension to be silent, and the dimensions do not come apart.

Why the decoder has no biases: a zero code then decodes to a blank page, whatever the weights. With biases it may decode
to a digit, and that digit is then coded as the absence of the other nine.
"""

from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

import gradroute as gr
from mnist_vae.config import Config

DIGITS = gr.RoutingSpec.one_per_label(10)
SIDE = 28
PIXELS = SIDE * SIDE
#: Logit of a blank page's pixels: about 5 % ink.
BLANK_LOGIT = -3.0


class Losses(NamedTuple):
    """Means over the images of a batch, in nats (the original's are in its own units)."""

    total: Tensor
    reconstruction: Tensor
    kl: Tensor


class VAE(nn.Module):
    """Shared by all recipes: image [N, 1, 28, 28] in [0, 1] to latent z [N, 10], and back."""

    def __init__(self, encoder: nn.Module, decoder: nn.Module, *, routing: bool = True, route_kl: bool = False) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder
        self.routing = routing
        self.route_kl = routing and route_kl

    def losses(self, images: Tensor, labels: Tensor, generator: Generator | None = None) -> Losses:
        mean, log_var = self.encode(images)
        z = self.sample(mean, log_var, generator)
        if self.routing:
            z = gr.route(z, labels, DIGITS)
        if self.route_kl:
            mean, log_var = gr.route(mean, labels, DIGITS), gr.route(log_var, labels, DIGITS)
        return self.weigh(images, self.decode_logits(z), mean, log_var)

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of the posterior over z, [N, 10] each."""
        mean, log_var = self.encoder(images).chunk(2, dim=1)
        return mean, log_var

    def encode_mean(self, images: Tensor) -> Tensor:
        """The posterior's mean [N, 10], as it is: the decoder clips it at zero, this does not."""
        return self.encode(images)[0]

    def std(self, log_var: Tensor) -> Tensor:
        return torch.exp(0.5 * log_var)

    def sample(self, mean: Tensor, log_var: Tensor, generator: Generator | None = None) -> Tensor:
        noise = torch.randn(mean.shape, generator=generator, device=mean.device)
        return mean + self.std(log_var) * noise

    def decode_logits(self, z: Tensor) -> Tensor:
        # The clip makes a negative code a blank page, so that a digit cannot hide on the negative side.
        logits: Tensor = self.decoder(F.relu(z))
        return logits.view(-1, 1, SIDE, SIDE)

    def decode(self, z: Tensor) -> Tensor:
        """Image [N, 1, 28, 28] in [0, 1] of a latent z [N, 10]."""
        return torch.sigmoid(self.decode_logits(z))

    def weigh(self, images: Tensor, logits: Tensor, mean: Tensor, log_var: Tensor) -> Losses:
        """The negative ELBO: summed over pixels and over dimensions, averaged over images."""
        count = len(images)
        reconstruction = F.binary_cross_entropy_with_logits(logits, images, reduction="sum") / count
        kl = 0.5 * (mean.square() + log_var.exp() - 1 - log_var).sum() / count
        return Losses(reconstruction + kl, reconstruction, kl)


class OriginalVAE(VAE):
    """The loss of the first gradient-routed VAE (Goldman-Wetzler, 2024), as published.

    Not an ELBO: the squared error has a weight of 0.3, the KL is averaged over dimensions and lacks its constants, and
    the encoder's second output, which the KL takes for a log-variance, is used raw as the standard deviation.
    """

    def std(self, log_var: Tensor) -> Tensor:
        return log_var

    def weigh(self, images: Tensor, logits: Tensor, mean: Tensor, log_var: Tensor) -> Losses:
        squared_error = (torch.sigmoid(logits) - images).square().sum() / len(images)
        kl = (mean.square() + log_var.exp() - log_var).mean()
        return Losses(0.3 * squared_error + kl, squared_error, kl)


class ChannelsLast(nn.Module):
    """Pixels outermost in memory, which CPU convolutions and pooling are faster on."""

    def forward(self, images: Tensor) -> Tensor:
        return images.contiguous(memory_format=torch.channels_last)


class BlankPage(nn.Module):
    """Adds the one constant that stands for all biases of the decoder."""

    def forward(self, logits: Tensor) -> Tensor:
        return logits + BLANK_LOGIT


class TwoHeads(nn.Module):
    """The original's last step: mean and spread, each a linear map of one 10-dimensional code."""

    def __init__(self) -> None:
        super().__init__()
        self.mean = nn.Linear(10, 10)
        self.spread = nn.Linear(10, 10)

    def forward(self, code: Tensor) -> Tensor:
        return torch.cat([self.mean(code), self.spread(code)], dim=1)


def build_model(config: Config) -> VAE:
    """The recipe's model, initialised from the config's seed."""
    recipe = config.settings()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        if recipe.model == "original":
            return OriginalVAE(
                nn.Sequential(nn.Flatten(), *_mlp(PIXELS, 2048, 512, 10), TwoHeads()),
                nn.Sequential(*_mlp(10, 512, 2048, PIXELS)),
                routing=config.routing,
            )
        decoder = nn.Sequential(*_mlp(10, 256, 512, PIXELS, bias=False), BlankPage())
        return VAE(_conv_encoder(), decoder, routing=config.routing, route_kl=recipe.route_kl)


def _mlp(*widths: int, bias: bool = True) -> list[nn.Module]:
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        layers += [nn.Linear(before, after, bias=bias), nn.ReLU()]
    return layers[:-1]


def _conv_encoder() -> nn.Sequential:
    """28 x 28 pixels to 14 x 14, 7 x 7 and 4 x 4, then 256 features, then mean and log-variance."""
    encoder = nn.Sequential(
        ChannelsLast(),
        *_conv(1, 32, kernel=5),
        *_conv(32, 64, kernel=5),
        *_conv(64, 128, kernel=3),
        nn.Flatten(),
        nn.Linear(128 * 4 * 4, 256, bias=False),
        nn.BatchNorm1d(256),
        nn.ReLU(),
        nn.Linear(256, 2 * DIGITS.width),
    )
    return encoder.to(memory_format=torch.channels_last)


def _conv(before: int, after: int, *, kernel: int) -> list[nn.Module]:
    """Half the side, rounded up."""
    convolution = nn.Conv2d(before, after, kernel, stride=2, padding=kernel // 2, bias=False)
    return [convolution, nn.BatchNorm2d(after), nn.ReLU()]
