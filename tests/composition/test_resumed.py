"""`torch.distributed.checkpoint`: training under an isolation goes on from a checkpoint as if nothing had happened."""

import itertools
from pathlib import Path

import pytest
import torch

from composition.forms import batch
from composition.isolation import (
    FORGET,
    RETAIN,
    UNITS_OF_FORGET,
    UNITS_OF_RETAIN,
    UNLABELED,
    entries,
    isolated,
    units_that_differ,
)
from composition.two_processes import run_in_two_processes

SCRIPT = Path(__file__).parent / "scripts" / "resumed.py"
STRATEGIES = ("fsdp2", "tensor parallelism")
TITLES = {"fsdp2": "FSDP2", "tensor parallelism": "tensor parallelism"}
FORMS = ("router", "routed_module")
LABELS = [UNLABELED, RETAIN, FORGET, RETAIN]
pytestmark = pytest.mark.xdist_group("distributed")


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory):
    """What the script saved: everything in one start of two processes."""
    return run_in_two_processes(SCRIPT, tmp_path_factory.mktemp("resumed") / "steps.pt")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "strategy",
    [
        pytest.param(
            name,
            marks=pytest.mark.supports(
                f"`optim.Isolation`: `torch.distributed.checkpoint`, {TITLES[name]}", forms=FORMS
            ),
        )
        for name in STRATEGIES
    ],
)
def test_what_is_resumed_from_a_checkpoint_is_bitwise_what_goes_on(found, form: str, strategy: str) -> None:
    steps = found[strategy, form]
    resumed = steps["resumed"]
    for went_on, again in zip(steps["went on"][-len(resumed) :], resumed, strict=True):
        assert went_on.keys() == again.keys()
        assert all(torch.equal(went_on[key], again[key]) for key in went_on)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "strategy",
    [
        "fsdp2",
        pytest.param(
            "tensor parallelism", marks=pytest.mark.supports("`optim.Isolation`: tensor parallelism", forms=FORMS)
        ),
    ],
)
def test_the_steps_are_those_of_one_process(found, form: str, strategy: str) -> None:
    steps = found[strategy, form]["went on"]
    assert [units_that_differ(*pair) for pair in itertools.pairwise(steps)] == [
        UNITS_OF_RETAIN,
        UNITS_OF_FORGET,
        UNITS_OF_RETAIN,
    ]
    routed, optimizer, _ = isolated(form)
    for number, labels in enumerate(LABELS):
        optimizer.zero_grad()
        x = batch(16, seed=number)[0]
        (routed(x, labels.repeat(2)).square().sum() / len(x)).backward()
        optimizer.step()
        torch.testing.assert_close(steps[number], entries(routed, optimizer), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_what_is_loaded_under_an_isolation_is_bitwise_what_goes_on(found, strategy: str) -> None:
    """Torch loads into the state that an empty step makes, which no isolation may keep the optimizer off."""
    late = found[strategy, "late"]
    assert len(late) == len(found[strategy, "router"]["resumed"])
    for went_on, again in zip(found[strategy, "router"]["went on"][-len(late) :], late, strict=True):
        assert all(torch.equal(went_on[key], again[key]) for key in went_on)
