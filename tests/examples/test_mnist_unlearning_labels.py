import pytest
import torch
from fake_mnist import synthetic

import gradroute as gr
from common.datasets import Dataset
from common.errors import ExampleError
from mnist_unlearning import detect
from mnist_unlearning.conditions import FRACTIONS, at_fraction, base_name, chosen, conditions
from mnist_unlearning.config import Condition, Settings
from mnist_unlearning.detect import detected
from mnist_unlearning.images import parts
from mnist_unlearning.labels import FORGET, RETAIN, known_labels

DIGITS = torch.randint(10, (5000,), generator=torch.Generator().manual_seed(0))
PLACEBO = Condition("p", "", labels="random")


def known(fraction: float, seed: int = 0, digit: int = 4) -> torch.Tensor:
    return known_labels(DIGITS, digit, Condition("c", "", fraction), seed)


@pytest.mark.parametrize("fraction", FRACTIONS)
def test_a_fixed_part_of_every_digit_is_labeled_and_right(fraction: float) -> None:
    found = known(fraction)
    assert torch.equal(found, known(fraction))
    assert (found != gr.UNLABELED).sum() == round(fraction * len(DIGITS))
    for digit in range(10):
        of_digit = found[digit == DIGITS]
        assert (of_digit != gr.UNLABELED).double().mean() == pytest.approx(fraction, abs=0.08)
        expected = FORGET if digit == 4 else RETAIN
        assert (of_digit[of_digit != gr.UNLABELED] == expected).all()


def test_a_smaller_fraction_is_a_part_of_a_larger_one_and_a_seed_another() -> None:
    few, many = known(0.1), known(0.5)
    labeled = few != gr.UNLABELED
    assert torch.equal(few[labeled], many[labeled])
    assert not torch.equal(known(0.1, seed=1), few)


def test_what_is_labeled_does_not_depend_on_the_digit_to_forget() -> None:
    assert torch.equal(known(0.1, digit=4) == gr.UNLABELED, known(0.1, digit=7) == gr.UNLABELED)


def test_the_placebo_has_as_many_and_knows_nothing_of_the_digit() -> None:
    placebo = known_labels(DIGITS, 4, PLACEBO, seed=0)
    assert (placebo == FORGET).sum() == (DIGITS == 4).sum()
    # Drawn without the digits: with other digits, of which as many are the one, it is the same draw.
    assert torch.equal(known_labels(DIGITS.flip(0), 4, PLACEBO, seed=0), placebo)
    share = (DIGITS[placebo == FORGET] == 4).double().mean().item()
    assert share == pytest.approx((DIGITS == 4).double().mean().item(), abs=0.05)
    assert not torch.equal(known_labels(DIGITS, 4, PLACEBO, seed=1), placebo)


def test_the_parts_are_the_same_each_time_and_share_no_image() -> None:
    data = Dataset(synthetic(120, seed=0), synthetic(40, seed=1))
    data.train.images[:, 0, 0, 0] = torch.arange(120, dtype=torch.uint8)
    found, chooses = parts(data), parts(data, validation=True)
    numbers = [split.images[:, 0, 0, 0].tolist() for split in (found.train, found.relearn, chooses.judge)]
    assert [len(each) for each in numbers] == [100, 10, 10]
    assert sorted(number for each in numbers for number in each) == list(range(120))
    assert torch.equal(chooses.train.images, found.train.images)
    assert found.judge is data.test


def test_a_detector_adds_labels_and_changes_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(detect, "_STEPS", 60)
    monkeypatch.setattr(detect, "SUSPICION", 0.5)
    split = synthetic(400, seed=0)
    labels = known_labels(split.labels, 4, Condition("c", "", 0.3), seed=0)
    settings = Settings(hidden=20, reserved=4, batch_size=64)
    found = detected(split, labels, settings, seed=0)
    labeled = labels != gr.UNLABELED
    assert torch.equal(found[labeled], labels[labeled])
    assert set(found[~labeled].tolist()) == {FORGET, gr.UNLABELED}
    assert ((found == FORGET) == (split.labels == 4)).double().mean() > 0.95
    assert torch.equal(detected(split, labels, settings, seed=0), found)


def test_rows_are_named_once_and_chosen_by_either_name() -> None:
    rows = conditions()
    assert len({row.name for row in rows}) == len(rows)
    assert [row.name for row in chosen(rows, ["parameters"])] == [
        "unrouted",
        "parameters-1",
        "parameters-0.5",
        "parameters-0.1",
    ]
    assert [row.name for row in chosen(rows, ["filtered-0.1", "unrouted"])] == ["unrouted", "filtered-0.1"]
    assert chosen(rows, []) == rows
    with pytest.raises(ExampleError, match=r"no row parametres; choose from unrouted, .*parameters-0\.1"):
        chosen(rows, ["parametres"])


def test_each_row_differs_from_the_main_one_in_what_it_says() -> None:
    rows = {base_name(row): row for row in at_fraction(0.1)}
    main = rows["parameters"]

    def differences(name: str) -> dict[str, object]:
        ignored = {"name", "what"}
        return {k: v for k, v in vars(rows[name]).items() if k not in ignored and v != getattr(main, k)}

    assert differences("placebo") == {"labels": "random"}
    assert differences("activations") == {"level": "activations"}
    assert differences("activations-whole") == {"level": "activations", "retain": "whole"}
    assert differences("activations-plain") == {
        "level": "activations",
        "retain": "together",
        "labeled_first": False,
    }
    assert differences("parameters-whole") == {"retain": "whole"}
    assert differences("parameters-together") == {"retain": "together"}
    assert differences("parameters-separate") == {"optimizer": "separate"}
    assert differences("parameters-isolated") == {"optimizer": "isolated"}
    assert differences("parameters-mixed") == {"labeled_first": False}
