"""Tensor and sequence parallelism on two processes: the gradients are those of one process on the same batch."""

import itertools
from pathlib import Path

import pytest
import torch

from composition import parallel_block, parameter_forms
from composition.forms import BEFORE_2_12, FORMS, assert_same, batch, expected_gradients
from composition.parallel_forms import LOCAL_PLANS, PLANS
from composition.two_processes import run_in_two_processes

SCRIPT = Path(__file__).parent / "scripts" / "tensor_parallel.py"
pytestmark = [pytest.mark.long, pytest.mark.xdist_group("distributed")]
CLOSE = {"rtol": 1e-4, "atol": 1e-5}


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory):
    """What the script saved: everything in one start of two processes."""
    return run_in_two_processes(SCRIPT, tmp_path_factory.mktemp("tensor_parallel") / "gradients.pt")


def shown_by(plan: str, form: str, level: str = "") -> pytest.MarkDecorator:
    title = f"{level}tensor parallelism (`parallelize_module`): {plan}"
    if form == "functional" and plan in LOCAL_PLANS:
        return pytest.mark.refuses(title, forms=[form])
    return pytest.mark.supports(title, forms=[form])


@pytest.mark.parametrize(
    ("plan", "form"),
    [pytest.param(*each, marks=shown_by(*each)) for each in itertools.product(PLANS, FORMS)],
)
def test_two_processes_give_the_gradients_of_one(found, plan: str, form: str) -> None:
    expected = expected_gradients(*batch(16))
    got = found["forms"][form, plan, "activations", False]
    if isinstance(got, str):
        assert form == "functional"
        assert plan in LOCAL_PLANS
        assert "routes 6 units, but the tensor of shape (16, 3) has 3" in got
        assert "tensor parallelism" in got
        assert "use_local_output=False" in got
        return
    assert_same(got, expected, **CLOSE)
    if form != "functional":
        assert_same(found["forms"][form, plan, "activations", True], expected, **CLOSE)


@pytest.mark.parametrize(
    ("plan", "form"),
    [
        pytest.param(*each, marks=shown_by(*each, level='level="parameters": '))
        for each in itertools.product(PLANS, ("router", "routed_module"))
    ],
)
@pytest.mark.parametrize("router_first", [False, True])
def test_parameters_learn_by_route_on_two_processes_as_on_one(found, plan: str, form: str, router_first: bool) -> None:
    expected = parameter_forms.expected(*batch(16))
    torch.testing.assert_close(found["forms"][form, plan, "parameters", router_first], expected, **CLOSE)


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("form", ["router", "routed_module"])
def test_a_site_on_the_input_sees_a_dtensor_if_the_router_came_last(found, form: str, plan: str) -> None:
    """A mask of the input of the decoder is one of the output of the encoder: between them is an element-wise function."""
    expected = expected_gradients(*batch(16))
    assert_same(found["forms"][form, plan, "inputs", False], expected, **CLOSE)
    router_first = found["forms"][form, plan, "inputs", True]
    if plan in LOCAL_PLANS:
        assert "make the router after parallelize_module" in router_first
    else:
        assert_same(router_first, expected, **CLOSE)


def title_of(name: str) -> str:
    kind = name.partition(",")[0]
    what = {"sequence": "sequence parallelism", "loss": "`loss_parallel`"}.get(kind, "tensor parallelism of a block")
    return f'level="parameters": {what}' if "parameters" in name else what


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.supports(title_of(name), forms=["router"])) for name in parallel_block.CASES],
)
def test_sites_all_over_a_divided_block_route_as_in_one_process(found, name: str) -> None:
    expected = parallel_block.gradients(parallel_block.CASES[name])
    assert_routed_alike(found["cases"][name], expected)
    # Each case would see a mask that is lost.
    unrouted = parallel_block.gradients(parallel_block.CASES[name], routed=False)
    assert any(not torch.allclose(expected[key], gradient, **CLOSE) for key, gradient in unrouted.items())


@(pytest.mark.refuses if BEFORE_2_12 else pytest.mark.supports)(
    "tensor parallelism of a block: compiled", forms=["router"]
)
@pytest.mark.parametrize("name", parallel_block.COMPILED)
def test_compiled_code_routes_alike(found, name: str) -> None:
    if BEFORE_2_12:
        assert found["compiled"][name].startswith("UsageError: ")
        assert "torch 2.12 and later can" in found["compiled"][name]
        return
    assert_routed_alike(found["compiled"][name], parallel_block.gradients(parallel_block.CASES[name]))


def assert_routed_alike(got, expected) -> None:
    assert_same(got, expected, **CLOSE)
    for name, gradient in expected.items():
        rows = gradient.reshape(len(gradient), -1)
        closed = (rows == 0).all(1)  # a unit, or a token that is not in the batch
        assert not got[name][closed].any(), name


@pytest.mark.parametrize("name", [name for name, case in parallel_block.CASES.items() if case.ablated is None])
def test_routing_makes_processes_speak_no_more_than_they_did(found, name: str) -> None:
    routed, unrouted = found["messages"][name]
    if name == "sequence, embedding":  # whose rows are divided: torch reduces before the site looks at its output
        assert sum(routed.values()) <= sum(unrouted.values())
    else:
        assert routed == unrouted
