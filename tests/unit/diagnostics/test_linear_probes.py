"""What a probe or decoder finds counts only on examples that it was not fitted on, and whatever the labels' numbers."""

import numpy as np
import pytest

from gradroute.diagnostics._linear_probes import Estimate, Procedure, decode, interval, probe

pytest.importorskip("sklearn")


def procedure():
    return Procedure(folds=4, draws=100, generator=np.random.default_rng(0))


def noise(*shape):
    return np.random.default_rng(1).normal(size=shape)


def brackets(estimate):
    return estimate.low < estimate.value < estimate.high


def test_noise_that_could_be_learned_by_heart_tells_nothing():
    x, wanted = noise(60, 40), np.arange(60) % 2 == 0
    assert probe(x, wanted, procedure()).value < 0.75
    assert decode(x, noise(60, 2), procedure()).value < 0.2


def test_what_is_there_is_found_with_an_interval_around_it():
    wanted = np.arange(80) % 2 == 0
    x = noise(80, 3)
    x[:, 1] += 3 * wanted
    found = probe(x, wanted, procedure())
    assert found.value > 0.85
    assert brackets(found)
    for n_targets in (1, 3):
        found = decode(x, x @ noise(3, n_targets) + 0.3 * noise(80, n_targets), procedure())
        assert found.value > 0.8
        assert brackets(found)
    assert brackets(interval(wanted.astype(float), procedure()))


def test_chance_is_one_half_however_rare_the_label_is():
    rare = np.arange(120) % 6 == 0
    assert probe(np.ones((120, 1)), rare, procedure()).value == 0.5
    x = noise(120, 1) + 1.5 * rare[:, None]
    found = probe(x, rare, procedure())
    assert found.value > 0.65, "and guessing the other side always is no way to be right"
    assert brackets(found)


def test_without_units_there_is_chance_and_of_what_does_not_vary_nothing_to_explain():
    none = np.zeros((20, 0))
    assert probe(none, np.arange(20) % 2 == 0, procedure()) == Estimate(0.5, 0.5, 0.5)
    assert decode(none, noise(20, 2), procedure()) == Estimate(0.0, 0.0, 0.0)
    assert decode(noise(20, 2), np.ones((20, 2)), procedure()) == Estimate(0.0, 0.0, 0.0)
