"""`RoutedTrainer` on two processes: labels stay with their part of the batch, and what is trained is that of one process."""

from pathlib import Path

import pytest
import torch

import gradroute as gr
from composition.language import joined, tiny_gpt2
from composition.two_processes import run_by_torchrun
from unit.trainers.by_hand import SITES, assert_same, evaluated, examples, loss_of, trained_by_hand

SCRIPT = Path(__file__).parent / "scripts" / "routed_trainer.py"
TITLES = {
    "plain": "",
    "accumulation": ", accumulation",
    "iterable": ", an `IterableDataset`",
    "checkpointing": ", `gradient_checkpointing`",
    "reentrant": ", `gradient_checkpointing` with `use_reentrant=True`",
}
pytestmark = [pytest.mark.long, pytest.mark.xdist_group("distributed")]
CLOSE = {"rtol": 1e-4, "atol": 1e-5}


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory):
    """What the script saved: all runs in one start of two processes."""
    return run_by_torchrun(SCRIPT, tmp_path_factory.mktemp("routed_trainer") / "trained.pt")


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.supports(f"`trainers.RoutedTrainer`: DDP{title}", forms=["router"]))
        for name, title in TITLES.items()
    ],
)
def test_two_processes_train_what_one_trains_on_the_joined_batch(found, name: str) -> None:
    accumulation = 2 if name == "accumulation" else 1
    state, losses = found[name]
    assert_same(state, trained_by_hand(examples(), micro=4, accumulation=accumulation), **CLOSE)

    model = tiny_gpt2().eval()
    model.load_state_dict(state)
    router = gr.Router(model, SITES)
    with torch.no_grad():
        plain = mean_loss(model)
        with router.ablated("forget"):
            ablated = mean_loss(model)
    assert losses["eval_loss"] == pytest.approx(plain, rel=1e-4)
    assert losses["eval_ablated_forget_loss"] == pytest.approx(ablated, rel=1e-4)
    assert plain != ablated


def mean_loss(model) -> float:
    batch = joined(evaluated())
    return (loss_of(model, batch) / batch["labels"][:, 1:].ne(-100).sum()).item()


@pytest.mark.supports("`trainers.RoutedTrainer`: DDP, `isolation`", forms=["router"])
def test_a_unit_is_held_if_neither_process_teaches_it(found) -> None:
    before = tiny_gpt2().state_dict()

    def moved(name: str) -> torch.Tensor:
        weight = "transformer.h.0.mlp.c_fc.weight"  # stored the other way around: a column writes a unit
        return (found[name][0][weight] != before[weight]).any(0)

    assert not moved("isolated, forget only")[:24].any()
    assert moved("isolated, forget only")[24:].all()
    assert moved("isolated, a label each").all()
