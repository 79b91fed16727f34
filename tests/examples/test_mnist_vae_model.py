import math
from typing import get_args

import pytest
import torch
from torch import Generator, Tensor
from torch.distributions import Bernoulli, Normal, kl_divergence
from torch.nn import functional as F

from mnist_vae.config import RECIPES, Config, RecipeName
from mnist_vae.model import BLANK_LOGIT, VAE, OriginalVAE, build_model

LABELS = torch.tensor([3, 0, 7, 3, 9, 1])
RECIPE_NAMES = get_args(RecipeName)


@pytest.fixture
def images() -> Tensor:
    return torch.rand(len(LABELS), 1, 28, 28, generator=Generator().manual_seed(0))


def seeded() -> Generator:
    return Generator().manual_seed(1)


def build(recipe: RecipeName = "default", *, routing: bool = True, seed: int = 0) -> VAE:
    return build_model(Config(recipe=recipe, routing=routing, seed=seed))


class LeafLatent(VAE):
    """The posterior is a pair of leaves, so that gradients can be read where they reach it."""

    mean: Tensor
    log_var: Tensor

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        return self.mean, self.log_var


def with_leaves(model: VAE) -> LeafLatent:
    leaf = LeafLatent(model.encoder, model.decoder, routing=model.routing, route_kl=model.route_kl)
    leaf.mean = (torch.rand(len(LABELS), 10, generator=seeded()) + 1).requires_grad_()
    leaf.log_var = (torch.rand(len(LABELS), 10, generator=seeded()) - 3).requires_grad_()
    return leaf


def gradients(term: str, recipe: RecipeName = "default", *, routing: bool = True) -> tuple[Tensor, Tensor]:
    model = with_leaves(build(recipe, routing=routing))
    images = torch.rand(len(LABELS), 1, 28, 28, generator=Generator().manual_seed(0))
    getattr(model.losses(images, LABELS, seeded()), term).backward()
    assert model.mean.grad is not None
    assert model.log_var.grad is not None
    return model.mean.grad, model.log_var.grad


OWN = F.one_hot(LABELS, 10).bool()


def test_reconstruction_teaches_each_image_only_its_own_dimension() -> None:
    for routed, plain in zip(gradients("reconstruction"), gradients("reconstruction", routing=False), strict=True):
        assert (routed[~OWN] == 0).all()
        assert (plain[~OWN] != 0).all()
        torch.testing.assert_close(routed[OWN], plain[OWN], rtol=0, atol=0)


def test_kl_stays_outside_the_route_and_pulls_every_dimension_to_the_prior() -> None:
    model = with_leaves(build())
    mean, log_var = gradients("kl")
    torch.testing.assert_close(mean, model.mean.detach() / len(LABELS))
    torch.testing.assert_close(log_var, (model.log_var.detach().exp() - 1) / 2 / len(LABELS))


def test_routed_kl_recipe_routes_the_whole_loss() -> None:
    for gradient in gradients("total", "routed-kl"):
        assert (gradient[~OWN] == 0).all()
        assert (gradient[OWN] != 0).all()


@pytest.mark.parametrize("recipe", RECIPE_NAMES)
def test_no_label_reaches_the_forward_pass(recipe: RecipeName, images: Tensor) -> None:
    model = build(recipe)
    first = model.losses(images, LABELS, seeded())
    other = model.losses(images, (LABELS + 1) % 10, seeded())
    assert [term.item() for term in first] == [term.item() for term in other]


@pytest.mark.parametrize("recipe", RECIPE_NAMES)
def test_without_routing_no_label_reaches_the_backward_pass(recipe: RecipeName, images: Tensor) -> None:
    def encoder_gradients(labels: Tensor) -> list[Tensor]:
        model = build(recipe, routing=False)
        model.losses(images, labels, seeded()).total.backward()
        return [parameter.grad for parameter in model.parameters() if parameter.grad is not None]

    for first, other in zip(encoder_gradients(LABELS), encoder_gradients((LABELS + 1) % 10), strict=True):
        assert torch.equal(first, other)


def test_loss_is_the_negative_elbo(images: Tensor) -> None:
    model = build()
    mean, log_var = model.encode(images)
    z = model.sample(mean, log_var, seeded())
    likelihood = Bernoulli(logits=model.decode_logits(z), validate_args=False).log_prob(images).sum((1, 2, 3))
    kl = kl_divergence(Normal(mean, (0.5 * log_var).exp()), Normal(0.0, 1.0)).sum(1)
    losses = model.losses(images, LABELS, seeded())
    torch.testing.assert_close(losses.reconstruction, -likelihood.mean())
    torch.testing.assert_close(losses.kl, kl.mean())
    torch.testing.assert_close(losses.total, (kl - likelihood).mean())


def test_original_loss_is_as_published(images: Tensor) -> None:
    model = build("original")
    assert isinstance(model, OriginalVAE)
    mean, spread = model.encode(images)
    noise = torch.randn(mean.shape, generator=seeded())
    decoded = torch.sigmoid(model.decoder((mean + spread * noise).relu())).detach()
    flat = images.flatten(1)
    squared = kl = 0.0
    for n in range(len(images)):
        squared += sum((flat[n, p] - decoded[n, p]).item() ** 2 for p in range(784)) / len(images)
        for j in range(10):
            m, s = mean[n, j].item(), spread[n, j].item()
            kl += (m**2 + math.exp(s) - s) / (len(images) * 10)
    losses = model.losses(images, LABELS, seeded())
    assert losses.reconstruction.item() == pytest.approx(squared, rel=1e-5)
    assert losses.kl.item() == pytest.approx(kl, rel=1e-5)
    assert losses.total.item() == pytest.approx(0.3 * squared + kl, rel=1e-5)


def test_original_has_the_published_layers() -> None:
    shapes = [tuple(parameter.shape) for parameter in build("original").parameters() if parameter.ndim == 2]
    encoder = [(2048, 784), (512, 2048), (10, 512), (10, 10), (10, 10)]
    assert shapes == [*encoder, (512, 10), (2048, 512), (784, 2048)]
    assert all(parameter.ndim == 2 for parameter in build().decoder.parameters()), "the default decoder has no bias"


def test_a_silent_or_negative_code_is_a_blank_page() -> None:
    model = build()
    codes = torch.cat([torch.zeros(1, 10), -torch.rand(3, 10)])
    blank = torch.sigmoid(torch.tensor(BLANK_LOGIT)).expand(4, 1, 28, 28)
    torch.testing.assert_close(model.decode(codes), blank, rtol=0, atol=0)


@pytest.mark.parametrize("recipe", RECIPE_NAMES)
def test_all_recipes_share_encode_mean_and_decode(recipe: RecipeName, images: Tensor) -> None:
    model = build(recipe).eval()
    mean = model.encode_mean(images)
    decoded = model.decode(mean)
    assert mean.shape == (len(images), model.spec.width)
    assert model.scores(mean).shape == (len(images), 10)
    assert decoded.shape == images.shape
    assert 0 <= decoded.min() <= decoded.max() <= 1


def test_seed_decides_the_weights_and_the_global_generator_is_left_alone() -> None:
    before = torch.get_rng_state()
    first, same, other = build(), build(), build(seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    weights = [torch.cat([p.flatten() for p in model.parameters()]) for model in (first, same, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_every_recipe_name_has_a_recipe() -> None:
    assert tuple(RECIPES) == RECIPE_NAMES
