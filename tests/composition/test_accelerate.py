"""accelerate on two processes: labels come with their part of the batch, and the gradients are those of one process."""

import itertools
from pathlib import Path

import pytest

from composition import parameter_forms
from composition.forms import FORMS, Expected, assert_same, batch, expected_gradients
from composition.isolation import UNITS_OF_RETAIN, units_that_differ
from composition.two_processes import run_in_two_processes

pytest.importorskip("accelerate")
SCRIPT = Path(__file__).parent / "scripts" / "accelerated.py"
TITLES = {"plain": "", "accumulation": ": `accumulate`", "bfloat16": ': `mixed_precision="bf16"`'}
pytestmark = pytest.mark.xdist_group("distributed")


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory):
    """What the script saved: everything in one start of two processes."""
    return run_in_two_processes(SCRIPT, tmp_path_factory.mktemp("accelerated") / "gradients.pt")


def close(strategy: str) -> dict[str, float]:
    return {"rtol": 0.05, "atol": 0.05} if strategy == "bfloat16" else {"rtol": 1e-4, "atol": 1e-5}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "strategy", [pytest.param(name, marks=pytest.mark.supports(f"accelerate{title}")) for name, title in TITLES.items()]
)
def test_two_processes_give_the_gradients_of_one_on_the_joined_batch(found, form: str, strategy: str) -> None:
    x, labels = batch(16)
    whole = expected_gradients(x, labels)
    expected = Expected({name: gradient / len(x) for name, gradient in whole.items()}, whole.closed)
    assert_same(found[strategy, form], expected, **close(strategy))


@pytest.mark.parametrize("form", ["router", "routed_module"])
@pytest.mark.parametrize(
    "strategy",
    [
        pytest.param(name, marks=pytest.mark.supports(f'level="parameters": accelerate{title}'))
        for name, title in TITLES.items()
    ],
)
def test_parameters_learn_by_route_on_two_processes_as_on_one(found, form: str, strategy: str) -> None:
    x, labels = batch(16)
    expected = {name: gradient / len(x) for name, gradient in parameter_forms.expected(x, labels).items()}
    assert_same(found[strategy, f"{form}, parameters"], expected, **close(strategy))


@pytest.mark.supports("`optim.Isolation`: accelerate", forms=["routed_module"])
def test_units_that_no_process_teaches_are_left_alone(found) -> None:
    assert [units_that_differ(*pair) for pair in itertools.pairwise(found["isolated"])] == [UNITS_OF_RETAIN] * 2
