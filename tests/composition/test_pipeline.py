"""Pipelines of two processes: labels that are an argument travel with their microbatch, and the gradients are those of one."""

from pathlib import Path

import pytest
import torch

from composition.pipeline_stages import RUNS, argument, data, gradients, loss_of, routed_stage
from composition.two_processes import run_in_two_processes

SCRIPT = Path(__file__).parent / "scripts" / "pipeline.py"
TITLE = "pipeline stages (`torch.distributed.pipelining`): labels"
pytestmark = pytest.mark.xdist_group("distributed")


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory):
    """What the script saved: everything in one start of two processes."""
    return run_in_two_processes(SCRIPT, tmp_path_factory.mktemp("pipeline") / "gradients.pt")


def shown_by(form: str, level: str) -> pytest.MarkDecorator:
    lead = 'level="parameters": ' if level == "parameters" else ""
    return pytest.mark.supports(f"{lead}{TITLE} as an argument of the stages", forms=[form])


@pytest.mark.parametrize(
    ("form", "level", "schedule"), [pytest.param(*each, marks=shown_by(*each[:2])) for each in RUNS]
)
def test_stages_learn_what_one_process_learns_of_the_whole_batch(found, form: str, level: str, schedule: str) -> None:
    whole = routed_stage(form, level)
    x, labels = data()
    loss_of(whole(x, **{argument(form): labels}), x).backward()
    expected = gradients([whole])
    parts = found[form, level, schedule]
    assert all(parts), "each process has a part"
    torch.testing.assert_close(parts[0] | parts[1], expected, rtol=1e-4, atol=1e-5)
    whole.zero_grad()
    loss_of(whole(x, **{argument(form): torch.full_like(labels, -1)}), x).backward()
    unrouted = gradients([whole])
    assert not any(torch.allclose(unrouted[name], expected[name]) for name in expected if name.endswith("weight"))


@pytest.mark.refuses(f"{TITLE} of the whole batch in a block around the schedule", forms=["router"])
def test_a_block_around_the_schedule_says_that_its_labels_are_of_another_batch(found) -> None:
    assert found["router"].startswith("LabelError: site 'layer0.linear': labels of shape (16,) do not fit")
    assert "(4, 6)" in found["router"]


@pytest.mark.parametrize(
    "form",
    [
        pytest.param(
            form,
            marks=pytest.mark.refuses("pipeline stages of an exported program (`pipeline`), with labels", forms=[form]),
        )
        for form in ("functional", "routed_module")
    ],
)
def test_a_model_is_not_exported_with_its_labels_to_be_cut_up(found, form: str) -> None:
    assert found["exported"][form] != "nothing"


def test_a_block_around_what_was_exported_without_labels_warns(found) -> None:
    assert any("got gradients" in message for message in found["exported"]["router"])
