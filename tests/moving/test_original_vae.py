"""docs/moving.md, "From the detach formula": the original gradient-routed VAE (Goldman-Wetzler, 2024), from its description."""

import pytest
import torch
from torch import Tensor, nn

import gradroute as gr

from .comparing import assert_same
from .hook_points import learned, with_gradient_times

DIGITS, PIXELS = 10, 16


class Vae(nn.Module):
    """Its deviation is used as it comes, its code is what is left above 0, and all pixels are between 0 and 1."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(PIXELS, 12), nn.ReLU(), nn.Linear(12, DIGITS))
        self.mean, self.deviation = nn.Linear(DIGITS, DIGITS), nn.Linear(DIGITS, DIGITS)
        self.code = nn.ReLU()
        self.decoder = nn.Sequential(nn.Linear(DIGITS, 12), nn.ReLU(), nn.Linear(12, PIXELS), nn.Sigmoid())

    def loss(self, images: Tensor, noise: Tensor, route=lambda z: z) -> Tensor:
        hidden = self.encoder(images)
        mean, deviation = self.mean(hidden), self.deviation(hidden)
        decoded = self.decoder(route(self.code(mean + noise * deviation)))
        kl = (mean.square() + deviation.exp() - deviation).mean()  # of all ten dimensions, around the route
        return 0.3 * (images - decoded).square().sum(-1).mean() + kl


@pytest.mark.parametrize("seed", range(3))
def test_its_formula_is_one_line_or_a_site_on_the_code(seed: int) -> None:
    torch.manual_seed(seed)
    vae, spec = Vae().double(), gr.RoutingSpec.one_per_label(DIGITS)
    images, digits = torch.rand(20, PIXELS, dtype=torch.float64), torch.randint(DIGITS, (20,))
    noise = torch.randn(20, DIGITS, dtype=torch.float64)
    one_hot = nn.functional.one_hot(digits, DIGITS).double()
    theirs = vae.loss(images, noise, lambda z: with_gradient_times(z, one_hot))
    line = vae.loss(images, noise, lambda z: gr.route(z, digits, spec))
    router = gr.Router(vae, {"code": spec})
    with router(digits):
        attached = vae.loss(images, noise)
    taught = learned(vae, theirs)
    for ours in (line, attached):
        assert torch.equal(ours, theirs)
        assert_same(taught, learned(vae, ours))


def test_its_kl_goes_around_the_route() -> None:
    """So every image trains every row that makes the means."""
    torch.manual_seed(0)
    vae, spec = Vae(), gr.RoutingSpec.one_per_label(DIGITS)
    images, noise = torch.rand(20, PIXELS), torch.zeros(20, DIGITS)
    threes = torch.full((20,), 3)
    rows = learned(vae, vae.loss(images, noise, lambda z: gr.route(z, threes, spec)))["mean.weight"]
    assert rows.any(1).all()
