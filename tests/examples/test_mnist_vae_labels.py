import pytest
import torch
from fake_mnist import synthetic
from torch import Tensor
from tqdm import tqdm

import gradroute as gr
from common.datasets import Split
from common.errors import ExampleError
from mnist_vae.config import RECIPES, Config, Recipe
from mnist_vae.labels import routing_labels
from mnist_vae.model import build_model
from mnist_vae.train import Trainer

DATA = synthetic(64, seed=0)
OTHER = Split(DATA.images, (DATA.labels + 3) % 10)
MANY = torch.arange(1000) % 10


@pytest.fixture(autouse=True)
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, recipe in list(RECIPES.items()):
        monkeypatch.setitem(RECIPES, name, Recipe(**{**vars(recipe), "batch_size": 32}))


def after(epochs: int, data: Split = DATA, total: int = 2, **choices: object) -> Trainer:
    """A trainer after some of the epochs of a config."""
    trainer = Trainer(Config(epochs=total, **choices), data)
    for _ in range(epochs):
        one_more(trainer)
    return trainer


def one_more(trainer: Trainer) -> None:
    with tqdm(disable=True) as bar:
        trainer.train_epoch(bar)


def weights(trainer: Trainer) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in trainer.model.parameters()])


@pytest.mark.parametrize("seed", [0, 1])
def test_fewer_labels_are_a_part_of_more_and_the_rest_is_unlabeled(seed: int) -> None:
    before: set[int] = set()
    for fraction in (0.0, 0.01, 0.1, 0.5, 1.0):
        labels = routing_labels(MANY, Config(seed=seed, label_fraction=fraction))
        kept = labels != gr.UNLABELED
        assert kept.sum() == fraction * 1000
        assert torch.equal(labels[kept], MANY[kept])
        now = set(kept.nonzero().flatten().tolist())
        assert before <= now
        before = now


def test_the_seed_chooses_which_labels_are_kept() -> None:
    first, same, other = (routing_labels(MANY, Config(seed=seed, label_fraction=0.5)) for seed in (0, 0, 1))
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


def test_placebo_labels_know_nothing_of_the_digits() -> None:
    placebo = Config(labels="random")
    drawn = routing_labels(MANY, placebo)
    assert torch.equal(drawn, routing_labels((MANY + 1) % 10, placebo)), "they do not depend on the labels"
    assert (torch.bincount(drawn, minlength=10) > 50).all()
    assert (drawn == MANY).float().mean() < 0.2


def test_placebo_labels_stay_with_their_image_over_epochs_and_resumption() -> None:
    trainer = after(1, labels="random")
    drawn = trainer.data.labels.clone()
    one_more(trainer)
    assert torch.equal(trainer.data.labels, drawn)
    assert torch.equal(after(0, labels="random").data.labels, drawn)


def test_placebo_training_does_not_depend_on_the_digits() -> None:
    assert torch.equal(weights(after(2, labels="random")), weights(after(2, OTHER, labels="random")))


def test_without_any_label_the_rule_all_is_training_without_routing() -> None:
    assert torch.equal(weights(after(2, label_fraction=0.0)), weights(after(2, routing=False)))


def test_the_rule_none_stops_the_reconstruction_of_unlabeled_images() -> None:
    images = DATA.images.float() / 255

    def gradients(labels: Tensor) -> list[Tensor]:
        model = build_model(Config(unlabeled="none")).eval()
        model.losses(images, labels, torch.Generator().manual_seed(0)).reconstruction.backward()
        return [parameter.grad for parameter in model.encoder.parameters() if parameter.grad is not None]

    everything = gradients(DATA.labels)
    nothing = gradients(torch.full((64,), gr.UNLABELED))
    assert all((gradient != 0).any() for gradient in everything)
    assert all((gradient == 0).all() for gradient in nothing)


def test_the_rule_loudest_is_a_label_that_the_code_itself_gives() -> None:
    images = DATA.images.float() / 255
    unlabeled = torch.where(torch.arange(64) < 10, DATA.labels, gr.UNLABELED)

    def gradients(labels: Tensor, **choices: object) -> list[Tensor]:
        model = build_model(Config(**choices)).eval()
        with torch.no_grad():
            said = model.encode_mean(images).argmax(dim=1)
        filled = torch.where(labels == gr.UNLABELED, said, labels) if not choices else labels
        model.losses(images, filled, torch.Generator().manual_seed(0)).total.backward()
        return [parameter.grad for parameter in model.parameters() if parameter.grad is not None]

    for found, expected in zip(gradients(unlabeled, unlabeled="loudest"), gradients(unlabeled), strict=True):
        assert torch.equal(found, expected)


def test_routing_is_removed_after_the_epochs_it_was_given() -> None:
    routed, half = after(1), after(1, routed_epochs=1)
    assert torch.equal(weights(routed), weights(half))
    half.data = Split(DATA.images, OTHER.labels)
    one_more(half)
    assert torch.equal(weights(half), weights(after(2, routed_epochs=1))), "labels no longer matter"
    one_more(routed)
    assert not torch.equal(weights(routed), weights(half))


@pytest.mark.parametrize(("routed_epochs", "same"), [(0, {"routing": False}), (2, {})])
def test_routed_for_no_epoch_or_for_all_of_them(routed_epochs: int, same: dict[str, bool]) -> None:
    assert torch.equal(weights(after(2, routed_epochs=routed_epochs)), weights(after(2, **same)))


def test_resumed_after_the_removal_it_stays_removed() -> None:
    whole, first = after(2, routed_epochs=1), after(1, routed_epochs=1)
    resumed = Trainer(first.config, DATA)
    resumed.model.load_state_dict(first.model.state_dict())
    resumed.optimizer.load_state_dict(first.optimizer.state_dict())
    resumed.epoch = 1
    one_more(resumed)
    assert torch.equal(weights(resumed), weights(whole))


def test_labeled_epochs_see_labeled_images_only_and_as_many_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[int]] = []

    def step(_: Trainer, __: int, batch: Tensor, ___: object) -> list[float]:
        seen.append(batch.tolist())
        return [0.0, 0.0, 0.0]

    monkeypatch.setattr(Trainer, "_step", step)
    trainer = after(2, label_fraction=0.25, labeled_epochs=1)
    labeled = set((trainer.data.labels != gr.UNLABELED).nonzero().flatten().tolist())
    assert len(labeled) == 16
    assert [len(batch) for batch in seen] == [32] * 4
    assert set(seen[0] + seen[1]) == labeled
    assert {(seen[0] + seen[1]).count(image) for image in labeled} == {4}, "each as often"
    assert set(seen[2] + seen[3]) == set(range(64))


def test_labeled_epochs_need_a_label() -> None:
    with pytest.raises(ExampleError, match="--labeled-epochs needs a label"):
        after(1, label_fraction=0.0, labeled_epochs=1)


@pytest.mark.parametrize(
    "choices", [{"labeled_epochs": -1}, {"label_fraction": 1.1}, {"label_fraction": -0.1}, {"routed_epochs": -1}]
)
def test_choices_that_cannot_be_are_refused(choices: dict[str, float]) -> None:
    with pytest.raises(ExampleError, match=r"--(label-fraction|routed-epochs|labeled-epochs) must be"):
        Config(**choices)


def test_a_config_saved_before_there_were_such_choices_is_the_default() -> None:
    saved = Config().to_dict()
    for name in ("label_fraction", "unlabeled", "labeled_epochs", "labels", "routed_epochs", "units"):
        del saved[name]
    del saved["settings"]["kl_weight"]
    assert Config.from_dict(saved) == Config()
    assert Config().differences(saved) == []
    assert Config(label_fraction=0.5).differences(saved) == ["label_fraction 1.0 -> 0.5"]
