from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import pytest
import torch
from fake_mnist import synthetic
from torch import Tensor, nn
from torch.nn import functional as F

import gradroute as gr
from gradroute.optim import Isolation
from mnist_unlearning.config import Condition, Settings
from mnist_unlearning.images import Parts, pixels
from mnist_unlearning.labels import FORGET, RETAIN, known_labels
from mnist_unlearning.measure import accuracy
from mnist_unlearning.model import attach, build, remove_block, split_of
from mnist_unlearning.relearn import relearning_curve, steps_to
from mnist_unlearning.run import run
from mnist_unlearning.train import Trainer
from mnist_vae.data import Split

SETTINGS = Settings(
    hidden=12,
    reserved=4,
    epochs=2,
    batch_size=20,
    learning_rate=5e-3,
    labeled_first=3,
    relearn_images=2,
    relearn_batch_size=8,
    checkpoints=(0, 1, 3),
)
BASE, BLOCK = slice(0, 12), slice(12, 16)
UNROUTED = Condition("unrouted", "")
ROUTED = Condition("routed", "", level="parameters", ablated_steps=True, labeled_first=True)
TRAIN = synthetic(100, seed=0)
DATA = Parts(TRAIN, synthetic(40, seed=1), synthetic(60, seed=2))


def trainer(condition: Condition, split: Split = TRAIN, settings: Settings = SETTINGS) -> Trainer:
    known = known_labels(split.labels, settings.digit, condition, seed=0)
    model = build(settings, seed=0)
    router = attach(model, settings, condition)
    return Trainer(model, router, split, known, settings=settings, condition=condition, seed=0)


def trained(condition: Condition, split: Split = TRAIN, steps: int = 12) -> dict[str, Tensor]:
    """Weights after training."""
    found = trainer(condition, split)
    found.train(steps)
    return {name: tensor.clone() for name, tensor in found.model.state_dict().items()}


def without_block(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {"0.weight": weights["0.weight"][BASE], "0.bias": weights["0.bias"][BASE], "2": weights["2.weight"][:, BASE]}


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one)


def redrawn(split: Split, digit: int = 4) -> Split:
    """The same, but for the images of one digit, which are other ones."""
    images = split.images.clone()
    images[split.labels == digit] = images[split.labels == digit].flip(2)
    return Split(images, split.labels)


def test_expansion_changes_nothing_until_training() -> None:
    model = build(SETTINGS, seed=0)
    assert [tuple(p.shape) for p in model.parameters()] == [(16, 784), (16,), (10, 16)]
    assert model[2].weight[:, BLOCK].count_nonzero() == 0
    assert model[0].weight[BLOCK].count_nonzero() == 4 * 784
    assert equal(build(SETTINGS, 0).state_dict(), model.state_dict())
    assert not equal(build(SETTINGS, 1).state_dict(), model.state_dict())


def test_the_twin_learns_what_a_model_without_a_router_does() -> None:
    found = trainer(UNROUTED)
    plain = build(SETTINGS, seed=0)
    batch = torch.arange(20)
    images, digits = pixels(TRAIN.images[batch]), TRAIN.labels[batch]
    optimizer = torch.optim.Adam(plain.parameters(), lr=SETTINGS.learning_rate, fused=True)
    for _ in range(3):
        found.step(batch)
        optimizer.zero_grad()
        (F.cross_entropy(plain(images), digits, reduction="sum") / 20).backward()
        optimizer.step()
    assert equal(plain.state_dict(), found.model.state_dict())


@pytest.mark.parametrize("fraction", [1.0, 0.5])
def test_the_filtered_model_never_sees_what_is_left_out(fraction: float) -> None:
    condition = Condition("filtered", "", fraction, filtered="labeled")
    known = known_labels(TRAIN.labels, 4, condition, seed=0)
    left = trainer(condition).split
    assert len(left) == len(TRAIN) - int((known == FORGET).sum())
    images = TRAIN.images.clone()
    images[known == FORGET] = 255 - images[known == FORGET]
    assert equal(trained(condition, Split(images, TRAIN.labels)), trained(condition))
    if fraction == 1:
        assert not (left.labels == 4).any()


def test_the_strictest_filter_leaves_only_what_is_labeled_harmless() -> None:
    condition = Condition("f", "", 0.5, filtered="unverified")
    known = known_labels(TRAIN.labels, 4, condition, seed=0)
    assert torch.equal(trainer(condition).split.labels, TRAIN.labels[known == RETAIN])


@pytest.mark.parametrize("optimizer", ["joint", "separate", "isolated"])
def test_the_base_is_bitwise_one_that_never_saw_the_digit_where_all_is_labeled(optimizer: Any) -> None:
    condition = replace(ROUTED, optimizer=optimizer)
    one, other = trained(condition), trained(condition, redrawn(TRAIN))
    assert equal(without_block(one), without_block(other))
    assert not torch.equal(one["0.weight"][BLOCK], other["0.weight"][BLOCK])


@pytest.mark.parametrize(
    "condition",
    [UNROUTED, replace(ROUTED, level="activations"), replace(ROUTED, fraction=0.5), replace(ROUTED, labels="random")],
)
def test_and_not_where_that_is_not_so(condition: Condition) -> None:
    assert not equal(without_block(trained(condition)), without_block(trained(condition, redrawn(TRAIN))))


def gradients_of_forget(level: Any) -> list[Tensor]:
    model = build(SETTINGS, seed=0)
    nn.init.normal_(model[2].weight)
    router = attach(model, SETTINGS, replace(ROUTED, level=level))
    images = pixels(TRAIN.images[TRAIN.labels == 4])
    with router(torch.full((len(images),), FORGET)):
        F.cross_entropy(model(images), torch.full((len(images),), 4)).backward()
    return [p.grad for p in model.parameters() if p.grad is not None]


def test_at_both_levels_the_digit_teaches_the_block_to_write_and_only_at_one_the_base_is_not_read() -> None:
    for level in ("activations", "parameters"):
        writers, biases, readers = gradients_of_forget(level)
        assert writers[BASE].count_nonzero() == biases[BASE].count_nonzero() == 0
        assert writers[BLOCK].count_nonzero() > 0
        assert readers[:, BLOCK].count_nonzero() > 0
        assert (readers[:, BASE].count_nonzero() > 0) == (level == "activations")


def changes(condition: Condition) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Weights before and after a step whose batch has only images labeled "retain", all of them without the block."""
    found = trainer(condition, settings=replace(SETTINGS, ablated_share=1.0))
    with Isolation(found.router, found.optimizer) if condition.optimizer == "isolated" else nullcontext():
        for _ in range(2):  # the first teaches what reads the block, the second the block
            found.step(torch.arange(20))
        before = {name: tensor.clone() for name, tensor in found.model.state_dict().items()}
        found.step((TRAIN.labels != 4).nonzero().flatten()[:20])
    return before, found.model.state_dict()


def test_ablated_steps_move_the_block_by_momentum_alone_and_isolation_stops_that() -> None:
    for optimizer, held in (("separate", False), ("isolated", True)):
        before, after = changes(replace(ROUTED, optimizer=optimizer))
        assert torch.equal(before["0.weight"][BLOCK], after["0.weight"][BLOCK]) == held
        assert torch.equal(before["2.weight"][:, BLOCK], after["2.weight"][:, BLOCK]) == held
        assert not torch.equal(before["0.weight"][BASE], after["0.weight"][BASE])


def test_training_can_begin_on_labeled_images() -> None:
    for first in (True, False):
        found = trainer(replace(ROUTED, fraction=0.5, labeled_first=first))
        batches = [batch for _, batch in zip(range(9), found.batches(), strict=False)]
        labeled = [bool((found.known[batch] != gr.UNLABELED).all()) for batch in batches]
        assert labeled == [first] * 3 + [False] * 6
        assert all(len(batch) == 20 == len(set(batch.tolist())) for batch in batches)


def test_removing_the_block_is_what_the_router_ablates() -> None:
    found = trainer(ROUTED)
    found.train(6)
    images = pixels(DATA.judge.images)
    with torch.no_grad(), found.router.ablated("forget"):
        expected = found.model(images)
    found.router.remove()
    remove_block(found.model, SETTINGS)
    assert found.model[0].weight[BLOCK].count_nonzero() == found.model[2].weight[:, BLOCK].count_nonzero() == 0
    torch.testing.assert_close(found.model(images), expected)
    kept = without_block(found.model.state_dict())
    kept = {name: tensor.clone() for name, tensor in kept.items()}
    remove_block(found.model, SETTINGS, fresh=torch.Generator().manual_seed(0))
    assert found.model[0].weight[BLOCK].count_nonzero() == 4 * 784
    assert equal(kept, without_block(found.model.state_dict()))


def test_accuracies_are_of_the_digit_and_of_the_others() -> None:
    class Fixed(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return F.one_hot(torch.full((len(images),), 7), 10).float()

    assert accuracy(Fixed(), DATA.judge, digit=7) == {"forgotten": 1.0, "kept": 0.0}
    assert accuracy(Fixed(), DATA.judge, digit=4) == {"forgotten": 0.0, "kept": pytest.approx(1 / 9)}


def test_a_run_repeats_itself_and_says_what_the_ablated_model_does() -> None:
    condition = replace(ROUTED, fraction=0.5)
    one, other = (run(condition, SETTINGS, DATA, seed=3) for _ in range(2))
    assert {key: one[key] for key in ("whole", "after", "relearning")} == {
        key: other[key] for key in ("whole", "after", "relearning")
    }
    known = known_labels(TRAIN.labels, 4, condition, seed=3)
    model = build(SETTINGS, seed=3)
    router = attach(model, SETTINGS, condition)
    Trainer(model, router, TRAIN, known, settings=SETTINGS, condition=condition, seed=3).train(10)
    assert one["whole"] == accuracy(model, DATA.judge, 4)
    with router.ablated("forget"):
        assert one["after"] == accuracy(model, DATA.judge, 4)


def test_a_run_leaves_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    run(replace(ROUTED, filtered="detected", fraction=0.5), replace(SETTINGS, epochs=1), DATA, seed=0)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_run_can_forget_by_the_row_or_not_at_all() -> None:
    row = run(replace(UNROUTED, forgets_by="row"), SETTINGS, DATA, seed=0)
    nothing = run(replace(UNROUTED, forgets_by="nothing"), SETTINGS, DATA, seed=0)
    assert row["whole"] == nothing["whole"] == nothing["after"]
    assert nothing["relearning"]["forgotten"][0] == nothing["after"]["forgotten"]
    assert row["relearning"]["forgotten"][0] == row["after"]["forgotten"]


def test_it_forgets_and_keeps_on_an_easy_set() -> None:
    split = synthetic(2000, seed=0)
    data = Parts(split, synthetic(100, seed=1), synthetic(400, seed=2))
    settings = replace(SETTINGS, hidden=32, reserved=16, batch_size=50, epochs=4, learning_rate=1e-2)
    found = run(ROUTED, settings, data, seed=0)
    assert found["whole"]["forgotten"] > 0.9
    assert found["after"]["forgotten"] < 0.05
    assert found["after"]["kept"] > 0.95


def test_the_relearning_curve_is_measured_after_the_steps_that_it_names() -> None:
    model = build(SETTINGS, seed=0)
    before = accuracy(model, DATA.judge, 4)
    curve = relearning_curve(model, DATA, SETTINGS, seed=0)
    assert curve["steps"] == [0, 1, 3]
    assert (curve["forgotten"][0], curve["kept"][0]) == (before["forgotten"], before["kept"])
    shorter = relearning_curve(build(SETTINGS, seed=0), DATA, replace(SETTINGS, checkpoints=(0, 1)), seed=0)
    assert shorter["kept"] == curve["kept"][:2]


@pytest.mark.parametrize(
    ("accuracies", "expected"),
    [([0.6, 0.9, 1], 0), ([0, 0.25, 0.75], 15), ([0, 0.5, 0.2], 10), ([0, 0.1, 0.4], float("inf"))],
)
def test_steps_to_a_level_lie_on_straight_lines(accuracies: list[float], expected: float) -> None:
    assert steps_to({"steps": [0, 10, 20], "forgotten": accuracies}, 0.5) == pytest.approx(expected)


def test_the_block_is_what_forget_alone_teaches() -> None:
    assert split_of(SETTINGS).exclusive("forget") == tuple(range(16)[BLOCK])
