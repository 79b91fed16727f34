"""DDP and FSDP2 on two processes: the gradients are those of one process on the joined batch."""

from pathlib import Path

import pytest
import torch

from composition import parameter_forms
from composition.forms import SILENT, Expected, assert_same, batch, expected_gradients
from composition.two_processes import run_in_two_processes

SCRIPT = Path(__file__).parent / "scripts" / "distributed.py"
TITLES = {
    "ddp": "DDP",
    "ddp no_sync": "DDP: accumulation under `no_sync`",
    "ddp find_unused_parameters": "DDP: `find_unused_parameters`",
    "ddp static_graph": "DDP: `static_graph`",
    "ddp gradient_as_bucket_view": "DDP: `gradient_as_bucket_view`",
    "ddp compiled": "DDP: compiled",
    "fsdp2": "FSDP2",
    "fsdp2 accumulation": "FSDP2: accumulation under `set_requires_gradient_sync`",
    "fsdp2 without reshard": "FSDP2: `reshard_after_forward=False`",
    "fsdp2 bfloat16": "FSDP2: bfloat16 mixed precision",
}


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, dict[str, torch.Tensor]]]:
    """What the script saved: all strategies and forms in one start of two processes."""
    return run_in_two_processes(SCRIPT, tmp_path_factory.mktemp("distributed") / "gradients.pt")


@pytest.mark.xdist_group("distributed")
@pytest.mark.parametrize(
    "strategy", [pytest.param(name, marks=pytest.mark.supports(title)) for name, title in TITLES.items()]
)
def test_two_processes_give_the_gradients_of_one_on_the_joined_batch(found, form: str, strategy: str) -> None:
    x, labels = batch(16)
    whole = expected_gradients(x, labels)
    expected = Expected({name: gradient / len(x) for name, gradient in whole.items()}, whole.closed)
    rounding = {"rtol": 0.05, "atol": 0.05} if "bfloat16" in strategy else {"rtol": 1e-4, "atol": 1e-5}
    assert_same(found[strategy][form], expected, **rounding)


@pytest.mark.xdist_group("distributed")
@pytest.mark.parametrize("form", ["router", "routed_module"])
@pytest.mark.parametrize(
    "strategy",
    [pytest.param(name, marks=pytest.mark.supports(f'level="parameters": {title}')) for name, title in TITLES.items()],
)
def test_parameters_learn_by_route_on_two_processes_as_on_one(found, form: str, strategy: str) -> None:
    x, labels = batch(16)
    expected = {name: gradient / len(x) for name, gradient in parameter_forms.expected(x, labels).items()}
    rounding = {"rtol": 0.05, "atol": 0.05} if "bfloat16" in strategy else {"rtol": 1e-4, "atol": 1e-5}
    torch.testing.assert_close(found[strategy][f"{form}, parameters"], expected, **rounding)


@pytest.mark.xdist_group("distributed")
@pytest.mark.parametrize(
    "strategy",
    [
        pytest.param(name, marks=pytest.mark.supports(f"silent units: {title}", forms=["routed_module"]))
        for name, title in TITLES.items()
    ],
)
def test_units_are_silent_on_two_processes_as_on_one(found, strategy: str) -> None:
    x, labels = batch(16)
    whole = expected_gradients(x, labels, spec=SILENT)
    expected = Expected({name: gradient / len(x) for name, gradient in whole.items()}, whole.closed)
    rounding = {"rtol": 0.05, "atol": 0.05} if "bfloat16" in strategy else {"rtol": 1e-4, "atol": 1e-5}
    assert_same(found[strategy]["routed_module, silent"], expected, **rounding)


def test_the_script_runs_every_strategy_that_is_tested(found) -> None:
    assert found.keys() == TITLES.keys()
