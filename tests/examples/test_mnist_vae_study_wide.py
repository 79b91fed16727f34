import pytest
import torch
from torch import Generator, Tensor

from common.errors import ExampleError
from mnist_vae.config import Config
from mnist_vae.model import BLANK_LOGIT, build_model
from mnist_vae.study.wide import LOUDNESS, PresenceVAE, SliceVAE

LABELS = torch.tensor([3, 0, 7, 3, 9, 1])
UNITS, SHARED = 4, 2
MODELS = ["presence", "slices"]


def build(model: str, *, routing: bool = True, **settings: float) -> SliceVAE:
    config = Config(recipe="wide", routing=routing, model=model, units=UNITS, shared=SHARED, **settings)
    built = build_model(config)
    assert isinstance(built, PresenceVAE if model == "presence" else SliceVAE)
    return built


def own() -> Tensor:
    """The units that each label may teach, written out."""
    units = torch.zeros(len(LABELS), 10 * UNITS + SHARED, dtype=torch.bool)
    for row, label in zip(units, LABELS.tolist(), strict=True):
        row[label * UNITS : (label + 1) * UNITS] = True
        row[10 * UNITS :] = True
    return units


def gradient(term: str, model: str, *, routing: bool = True, **settings: float) -> tuple[Tensor, Tensor]:
    """Where the loss reaches the posterior's mean, and that mean."""
    vae = build(model, routing=routing, **settings)
    mean = (torch.rand(len(LABELS), 10 * UNITS + SHARED, generator=Generator().manual_seed(1)) + 1).requires_grad_()
    vae.encode = lambda _: (mean, torch.full_like(mean, -4.0))  # type: ignore[method-assign]
    images = torch.rand(len(LABELS), 1, 28, 28, generator=Generator().manual_seed(0))
    getattr(vae.losses(images, LABELS, Generator().manual_seed(2)), term).backward()
    assert mean.grad is not None
    return mean.grad, mean.detach()


@pytest.mark.parametrize("model", MODELS)
def test_reconstruction_teaches_the_slice_of_the_label_and_the_shared_units(model: str) -> None:
    routed, _ = gradient("reconstruction", model)
    plain, _ = gradient("reconstruction", model, routing=False)
    assert (routed[~own()] == 0).all()
    assert (plain[~own()] != 0).all()
    torch.testing.assert_close(routed[own()], plain[own()], rtol=0, atol=0)


@pytest.mark.parametrize("routing", [True, False])
def test_the_loss_weighs_the_kl_of_presence_and_style_each_by_its_own(routing: bool) -> None:
    settings = {"kl_weight": 0.25, "presence_kl_weight": 0.5}
    total, mean = gradient("total", "presence", routing=routing, **settings)
    reconstruction, _ = gradient("reconstruction", "presence", routing=routing, **settings)
    weight = torch.full((10 * UNITS + SHARED,), 0.25)
    weight[[digit * UNITS for digit in range(10)]] = 0.5
    torch.testing.assert_close(total - reconstruction, weight * mean / len(LABELS), rtol=1e-3, atol=1e-4)


def test_the_reported_kl_is_not_weighed() -> None:
    kl, mean = gradient("kl", "presence", kl_weight=0.25)
    torch.testing.assert_close(kl, mean / len(LABELS))


def test_without_presence_no_style_draws_anything() -> None:
    model = build("presence")
    z = torch.randn(20, 10 * UNITS + SHARED, generator=Generator().manual_seed(0))
    z[:, : 10 * UNITS : UNITS] = -z[:, : 10 * UNITS : UNITS].abs()
    blank = torch.sigmoid(torch.tensor(BLANK_LOGIT)).expand(20, 1, 28, 28)
    torch.testing.assert_close(model.decode(z), blank, rtol=0, atol=0)


def test_a_style_speaks_in_both_directions_and_only_beside_its_own_presence() -> None:
    model = build("presence")
    z = model.pure(torch.tensor([2.0]))[3].repeat(4, 1)
    z[1, 3 * UNITS + 1], z[2, 3 * UNITS + 1], z[3, 5 * UNITS + 1] = 1, -1, 1
    plain, more, less, foreign = model.decode(z)
    assert torch.equal(foreign, plain)
    assert not torch.equal(more, plain)
    assert not torch.equal(less, plain)
    assert not torch.equal(more, less)


@pytest.mark.parametrize("model", MODELS)
def test_a_pure_code_speaks_of_its_digit_as_strongly_as_asked_and_of_no_other(model: str) -> None:
    vae, strengths = build(model), torch.tensor([0.5, 3.0])
    scores = torch.stack([vae.scores(codes) for codes in vae.pure(strengths)])
    scores = scores / (LOUDNESS if model == "presence" else 1)
    torch.testing.assert_close(scores, torch.eye(10).unsqueeze(1) * strengths.view(1, -1, 1))


@pytest.mark.parametrize("model", MODELS)
def test_shared_units_have_no_say_in_the_scores(model: str) -> None:
    vae = build(model)
    z = torch.rand(5, 10 * UNITS + SHARED, generator=Generator().manual_seed(0))
    other = z.clone()
    other[:, 10 * UNITS :] += 5
    assert torch.equal(vae.scores(z), vae.scores(other))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"recipe": "wide", "units": 0}, "--units must be at least 1"),
        ({"recipe": "wide", "shared": -1}, "--shared"),
        ({"recipe": "wide", "kl_weight": -0.1}, "KL weights"),
        ({"recipe": "quick", "units": 2}, "give --recipe wide"),
        ({"recipe": "original", "shared": 2}, "give --recipe wide"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ExampleError, match=message):
        Config(**settings)
