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
    """Shared by all recipes: image [N, 1, 28, 28] in [0, 1] to latent z [N, units], ten units in most, and back.

    Args:
        encoder: Image to mean and log-variance, side by side.
        decoder: What `decode_logits` makes of z, to 784 logits.
        spec: Which units the reconstruction of each digit may teach.
        routing: Without it, a plain VAE; may be set at any time.
        route_kl: Route the KL, too.
        loudest: Let an unlabeled image teach the digit of which its own code speaks loudest, and no other.
        kl_weight: Of the KL in the loss: one number, or one for each unit.
    """

    #: Whether the loss is a negative ELBO, in nats.
    is_elbo = True

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        spec: gr.RoutingSpec = DIGITS,
        *,
        routing: bool = True,
        route_kl: bool = False,
        loudest: bool = False,
        kl_weight: float | Tensor = 1.0,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.latent = nn.Identity()  # a place at which to look at z
        self.decoder = decoder
        self.spec = spec
        self.routing = routing
        self.route_kl = route_kl
        self.loudest = loudest
        self.kl_weight = kl_weight

    def losses(self, images: Tensor, labels: Tensor, generator: Generator | None = None) -> Losses:
        mean, log_var = self.encode(images)
        z = self.latent(self.sample(mean, log_var, generator))
        if self.routing:
            if self.loudest:
                labels = torch.where(labels == gr.UNLABELED, self.scores(mean.detach()).argmax(dim=1), labels)
            z = gr.route(z, labels, self.spec)
            if self.route_kl:
                mean, log_var = gr.route(mean, labels, self.spec), gr.route(log_var, labels, self.spec)
        return self.weigh(images, self.decode_logits(z), mean, log_var)

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of the posterior over z, [N, units] each."""
        mean, log_var = self.encoder(images).chunk(2, dim=1)
        return mean, log_var

    def encode_mean(self, images: Tensor) -> Tensor:
        """The posterior's mean [N, units], as it is: the decoder clips it at zero, this does not."""
        return self.encode(images)[0]

    def scores(self, z: Tensor) -> Tensor:
        """How strongly z speaks of each digit, [N, 10]; the largest is the prediction."""
        return z

    def pure(self, strengths: Tensor) -> Tensor:
        """Codes [10, S, units] that speak of one digit and of nothing else, as strongly as given in [S].

        The strengths are those of the model with one unit per digit, in which an image's own unit is near 3.
        """
        return torch.eye(DIGITS.width).unsqueeze(1) * strengths.view(1, -1, 1)

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
        """Image [N, 1, 28, 28] in [0, 1] of a latent z [N, units]."""
        return torch.sigmoid(self.decode_logits(z))

    def weigh(self, images: Tensor, logits: Tensor, mean: Tensor, log_var: Tensor) -> Losses:
        """The negative ELBO: summed over pixels and over dimensions, averaged over images.

        With `kl_weight`, the loss is that of a beta-VAE; the KL is reported as it is.
        """
        count = len(images)
        reconstruction = F.binary_cross_entropy_with_logits(logits, images, reduction="sum") / count
        kl = 0.5 * (mean.square() + log_var.exp() - 1 - log_var) / count
        return Losses(reconstruction + (kl * self.kl_weight).sum(), reconstruction, kl.sum())


class OriginalVAE(VAE):
    """The loss of the first gradient-routed VAE (Goldman-Wetzler, 2024), as published.

    Not an ELBO: the squared error has a weight of 0.3, the KL is averaged over dimensions and lacks its constants, and
    the encoder's second output, which the KL takes for a log-variance, is used raw as the standard deviation.
    """

    is_elbo = False

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
    # Imported here, since its models build on this one.
    from mnist_vae.study.wide import PresenceVAE, SliceVAE  # noqa: PLC0415

    recipe, routing = config.settings(), config.routing
    loudest = config.unlabeled == "loudest"
    # With the rule "loudest" no image is unlabeled by the time it is routed.
    rule = "all" if config.unlabeled == "loudest" else config.unlabeled
    sizes = dict.fromkeys(range(DIGITS.width), recipe.units)
    spec = gr.RoutingSpec.split(sizes, shared=recipe.shared, unlabeled=rule)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        if recipe.model in ("original", "original-our-decoder"):
            encoder = nn.Sequential(nn.Flatten(), *_mlp(PIXELS, 2048, 512, 10), TwoHeads())
            original = recipe.model == "original"
            decoder = nn.Sequential(*_mlp(10, 512, 2048, PIXELS)) if original else _blank_decoder(10)
            return OriginalVAE(encoder, decoder, spec, routing=routing, loudest=loudest)
        encoder, decoder = _conv_encoder(spec.width), _blank_decoder(spec.width)
        if recipe.model == "presence":
            return PresenceVAE(encoder, decoder, spec, recipe, routing=routing, loudest=loudest)
        if recipe.model == "slices":
            return SliceVAE(encoder, decoder, spec, recipe, routing=routing, loudest=loudest)
        return VAE(
            encoder,
            decoder,
            spec,
            routing=routing,
            route_kl=recipe.route_kl,
            loudest=loudest,
            kl_weight=recipe.kl_weight,
        )


def _blank_decoder(units: int) -> nn.Sequential:
    layers = _mlp(units, 256, 512, PIXELS, bias=False)
    # Torch scales the first weights for inputs that all speak at once, and of many slices only one does. With ten units
    # this changes nothing.
    with torch.no_grad():
        for parameter in layers[0].parameters():
            parameter.mul_((units / DIGITS.width) ** 0.5)
    return nn.Sequential(*layers, BlankPage())


def _mlp(*widths: int, bias: bool = True) -> list[nn.Module]:
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        layers += [nn.Linear(before, after, bias=bias), nn.ReLU()]
    return layers[:-1]


def _conv_encoder(units: int) -> nn.Sequential:
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
        nn.Linear(256, 2 * units),
    )
    return encoder.to(memory_format=torch.channels_last)


def _conv(before: int, after: int, *, kernel: int) -> list[nn.Module]:
    """Half the side, rounded up."""
    convolution = nn.Conv2d(before, after, kernel, stride=2, padding=kernel // 2, bias=False)
    return [convolution, nn.BatchNorm2d(after), nn.ReLU()]
