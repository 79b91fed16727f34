"""FSDP2 and tensor parallelism on a mesh of 2 x 2 processes: the gradients are those of one process on the joined batch."""

import itertools
from pathlib import Path

import pytest

from composition import parameter_forms
from composition.forms import FORMS, Expected, assert_same, batch, expected_gradients
from composition.parallel_forms import LOCAL_PLANS, PLANS
from composition.two_processes import run_in_processes

SCRIPT = Path(__file__).parent / "scripts" / "mesh.py"
TITLE = "FSDP2 and tensor parallelism on a 2 x 2 mesh"
pytestmark = pytest.mark.xdist_group("distributed")
CLOSE = {"rtol": 1e-4, "atol": 1e-5}


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory):
    """What the script saved: everything in one start of four processes."""
    return run_in_processes(4, SCRIPT, tmp_path_factory.mktemp("mesh") / "gradients.pt")


@pytest.mark.parametrize(
    ("form", "plan"),
    [
        pytest.param(form, plan, marks=pytest.mark.supports(TITLE, forms=[form]))
        for form, plan in itertools.product(FORMS, PLANS)
        if form != "functional" or plan not in LOCAL_PLANS
    ],
)
def test_four_processes_give_the_gradients_of_one_on_the_joined_batch(found, form: str, plan: str) -> None:
    x, labels = batch(16)
    whole = expected_gradients(x, labels)
    expected = Expected({name: gradient / len(x) for name, gradient in whole.items()}, whole.closed)
    assert_same(found[form, plan, "activations"], expected, **CLOSE)


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize(
    "form",
    [
        pytest.param(form, marks=pytest.mark.supports(f'level="parameters": {TITLE}', forms=[form]))
        for form in ("router", "routed_module")
    ],
)
def test_parameters_learn_by_route_on_four_processes_as_on_one(found, form: str, plan: str) -> None:
    x, labels = batch(16)
    expected = {name: gradient / len(x) for name, gradient in parameter_forms.expected(x, labels).items()}
    assert_same(found[form, plan, "parameters"], expected, **CLOSE)
