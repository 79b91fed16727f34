import pytest
import torch
from fake_mnist import synthetic
from torch import Tensor

import gradroute as gr
from mnist_vae.config import Config, RecipeName
from mnist_vae.model import build_model
from mnist_vae.study import leaks as leaks_module
from mnist_vae.study.figures import audit_heatmaps
from mnist_vae.study.leaks import audit, leaks

DATA = synthetic(40, seed=0)


@pytest.fixture(autouse=True)
def quick_audit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leaks_module, "IMAGES", 20)


@pytest.mark.parametrize(
    ("recipe", "kinds"),
    [
        ("default", {"side loss", "reader"}),  # the KL, and a decoder without biases
        ("original", {"side loss", "reader", "shared bias"}),
        ("wide", {"side loss", "reader"}),
    ],
)
def test_the_kl_and_the_readers_are_named(recipe: RecipeName, kinds: set[str]) -> None:
    found = leaks(audit(build_model(Config(recipe=recipe)).eval(), DATA))
    assert set(found) == kinds
    assert all(0 < share <= 1 for share in found.values())


def test_without_the_kl_only_the_readers_are_left() -> None:
    model = build_model(Config()).eval()
    model.kl_weight = 0.0
    assert set(leaks(audit(model, DATA))) == {"reader"}


def test_a_route_at_the_latent_is_the_models_own() -> None:
    images, labels = DATA.images.float() / 255, DATA.labels

    def gradients(*, router: bool) -> list[Tensor]:
        model = build_model(Config()).eval()
        if router:
            model.routing = False
            with gr.Router(model, {"latent": model.spec})(labels):
                model.losses(images, labels, torch.Generator().manual_seed(0)).total.backward()
        else:
            model.losses(images, labels, torch.Generator().manual_seed(0)).total.backward()
        return [parameter.grad for parameter in model.parameters()]

    for found, expected in zip(gradients(router=True), gradients(router=False), strict=True):
        assert torch.equal(found, expected)


def test_it_is_repeatable_and_leaves_model_and_random_numbers_alone() -> None:
    model = build_model(Config()).train()
    before, state = {name: value.clone() for name, value in model.state_dict().items()}, torch.get_rng_state()
    first = audit(model, DATA)
    assert torch.equal(torch.get_rng_state(), state)
    assert model.routing
    assert model.training
    assert not model.latent._forward_hooks
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    torch.rand(3)
    assert audit(model, DATA).to_dict() == first.to_dict()


def test_the_heatmaps_show_each_digit_at_its_own_dimension_and_what_goes_around() -> None:
    report = audit(build_model(Config()).eval(), DATA)
    figure = audit_heatmaps(report, "of a test")
    panels = {axes.get_title(): axes for axes in figure.axes}
    assert {"site latent, output", "parameters", "bypasses"} <= set(panels)
    shown = torch.as_tensor(panels["site latent, output"].get_images()[0].get_array())
    # An untrained unit may be silent on the few images of its digit; then nothing of that digit is there to be seen.
    assert torch.equal(shown, shown.diagonal().diag())
    assert shown.sum() > 5
    assert figure.get_suptitle().endswith("of a test")
