"""The report of a specialization, of numbers that are made up."""

import json

import pytest

from gradroute.diagnostics import Estimate, Slice, SpecializationReport
from gradroute.diagnostics._reports import label_name

CHANCE = Estimate(0.5, 0.4, 0.6)
SURE = Estimate(1.0, 0.9, 1.0)


def report(*, decoder=None):
    slices = tuple(Slice(label, (unit,), SURE, CHANCE, decoder, decoder, CHANCE) for unit, label in enumerate("ab"))
    return SpecializationReport(
        "latent", ("a", "b"), (3, 4), ((2.0, 0.0), (0.0, 1.5)), SURE, CHANCE, slices, (1.0, 2.0), ((1.5, 2.0), None)
    )


def test_json_carries_all_of_it():
    data = json.loads(json.dumps(report().to_dict(), allow_nan=False))
    assert data["activation"] == [[2.0, 0.0], [0.0, 1.5]]
    assert data["ablated_loss"] == [[1.5, 2.0], None]
    assert [part["label"] for part in data["slices"]] == ["a", "b"]


@pytest.mark.parametrize("decoder", [None, SURE])
def test_each_label_has_a_row(decoder):
    for text in (str(report(decoder=decoder)), report(decoder=decoder).to_markdown()):
        for label in ("a", "b"):
            assert label_name(label) in text
        assert str(report().accuracy) in text


def test_the_pictures_are_of_activation_and_of_what_ablation_raises():
    activation, ablation, *_ = report().plot().axes
    assert activation.get_title() == "activation"
    assert ablation.get_title() == "ablation"
    assert activation.images[0].get_array().tolist() == [[2.0, 0.0], [0.0, 1.5]]
    rises = ablation.images[0].get_array()
    assert rises[0].tolist() == [0.5, 0.0]
    assert rises[1].tolist() == [0.0, 0.0], "nothing of the second label can be off"
