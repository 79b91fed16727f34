"""`RoutedTrainer`: a trained model is that of a loop by hand, and what it saves is the plain model's."""

import json
import os
import subprocess
import sys

import pytest
import torch
from torch.optim.lr_scheduler import LambdaLR

import gradroute as gr
from composition.forms import WARNINGS_OF_TORCH
from composition.language import SITE, moved_units, taught_units, tiny_gpt2
from gradroute.errors import SiteError
from gradroute.trainers import RoutedTrainer
from unit.trainers.by_hand import (
    OLD_AUTOCAST,
    OLD_NAME,
    SITES,
    STEPS,
    assert_same,
    differ,
    examples,
    trained_by_hand,
    trainer_of,
)

pytestmark = WARNINGS_OF_TORCH

CLOSE = {"rtol": 1e-4, "atol": 1e-5}
FORMS = pytest.mark.parametrize("per_example", [False, True], ids=["per token", "per example"])


# ------------------------------------------------------------------ what it trains


@FORMS
def test_it_trains_what_a_loop_by_hand_trains(per_example: bool, tmp_path) -> None:
    data = examples(per_example=per_example)
    trainer = trainer_of(tmp_path, data)
    trainer.train()
    expected = trained_by_hand(data)
    assert_same(trainer.model.state_dict(), expected, **CLOSE)
    assert differ(expected, trained_by_hand(data, routed=False))


def test_a_router_of_ones_own_does_as_sites_do(tmp_path) -> None:
    model = tiny_gpt2()
    router = gr.Router(model, SITES)
    trainer = trainer_of(tmp_path, examples(), trainer={"model": model, "sites": None, "router": router})
    trainer.train()
    assert trainer.router is router
    assert_same(model.state_dict(), trained_by_hand(examples()), **CLOSE)


@pytest.mark.parametrize("accumulation", [2, 4])
@FORMS
def test_accumulation_is_one_mean_over_all_targets_each_micro_batch_by_its_own_labels(
    accumulation: int, per_example: bool, tmp_path
) -> None:
    data = examples(per_example=per_example)
    trainer = trainer_of(tmp_path, data, gradient_accumulation_steps=accumulation)
    trainer.train()
    assert_same(trainer.model.state_dict(), trained_by_hand(data, accumulation=accumulation), **CLOSE)


@OLD_NAME
@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("accumulation", [1, 2])
def test_checkpointing_of_either_kind_trains_the_same(reentrant: bool, accumulation: int, tmp_path) -> None:
    options = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": reentrant}}
    trainer = trainer_of(tmp_path, examples(), gradient_accumulation_steps=accumulation, **options)
    runs = []
    trainer.model.transformer.h[0].ln_1.register_forward_hook(lambda *_: runs.append(1))
    trainer.train()
    assert len(runs) == 2 * STEPS * accumulation  # each once more in the backward pass
    assert_same(trainer.model.state_dict(), trained_by_hand(examples(), accumulation=accumulation), **CLOSE)


@OLD_NAME
@OLD_AUTOCAST
@pytest.mark.parametrize("reentrant", [None, False, True])
def test_bf16_trains_what_autocast_in_a_loop_trains(reentrant: bool | None, tmp_path) -> None:
    options = {}
    if reentrant is not None:
        options = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": reentrant}}
    trainer = trainer_of(tmp_path, examples(), bf16=True, **options)
    trainer.train()
    expected = trained_by_hand(examples(), bf16=True)
    assert_same(trainer.model.state_dict(), expected, **CLOSE)
    assert not all(torch.equal(expected[name], value) for name, value in trained_by_hand(examples()).items())


def test_compiled_it_trains_the_same(tmp_path) -> None:
    torch.compiler.reset()
    options = {"torch_compile": True, "torch_compile_backend": "aot_eager"}
    model = tiny_gpt2(layers=1)  # whose code is that of any number
    trainer = trainer_of(tmp_path, examples(), trainer={"model": model}, **options)
    trainer.train()
    assert isinstance(trainer.model_wrapped, torch._dynamo.OptimizedModule)
    assert_same(trainer.model.state_dict(), trained_by_hand(examples(), layers=1), **CLOSE)


@pytest.mark.parametrize("ids", [[1], [0]], ids=["forget", "retain"])
def test_a_column_of_names_trains_only_what_they_may_teach(ids: list[int], tmp_path) -> None:
    name = SITES[SITE].labels[ids[0]]
    data = [{**example, "route_labels": name} for example in examples()]
    trainer = trainer_of(tmp_path, data)
    trainer.train()
    expected = trained_by_hand([{**example, "route_labels": torch.tensor(ids[0])} for example in examples()])
    assert_same(trainer.model.state_dict(), expected, **CLOSE)


@pytest.mark.parametrize("isolation", [False, True])
def test_isolation_holds_what_no_micro_batch_of_a_step_teaches(isolation: bool, tmp_path) -> None:
    """Weight decay alone would move it."""
    options = {"optim": "adamw_torch", "weight_decay": 0.5, "gradient_accumulation_steps": 2, "max_grad_norm": 0.1}
    trainer = trainer_of(tmp_path, examples([1]), trainer={"isolation": isolation}, **options)
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    trainer.train()
    name = "transformer.h.0.mlp.c_fc.weight"
    moved = (trainer.model.state_dict()[name] != before[name]).any(0)
    assert moved[24:].all()
    assert moved[:24].any() != isolation
    assert (trainer.isolation is not None) == isolation


def test_isolation_of_some_sites_holds_theirs_only(tmp_path) -> None:
    options = {"optim": "adamw_torch", "weight_decay": 0.5}
    names = ["transformer.h.0.mlp.c_fc"]
    trainer = trainer_of(tmp_path, examples([1]), trainer={"isolation": names}, **options)
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    trainer.train()
    for block, held in ((0, True), (1, False)):
        name = f"transformer.h.{block}.mlp.c_fc.weight"
        assert (trainer.model.state_dict()[name] != before[name]).any(0)[:24].any() != held
    assert trainer_of(tmp_path, examples([1]), trainer={"isolation": False}).isolation is None
    with pytest.raises(SiteError, match="nowhere"):
        trainer_of(tmp_path, examples([1]), trainer={"isolation": ["nowhere"]}).train()


def test_an_optimizer_of_ones_own_is_isolated_too(tmp_path) -> None:
    model = tiny_gpt2()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.5)
    optimizers = optimizer, LambdaLR(optimizer, lambda step: 1.0)
    given = {"model": model, "sites": {SITE: SITES[SITE]}, "isolation": True, "optimizers": optimizers}
    trainer_of(tmp_path, examples([1]), trainer=given).train()

    class Trained:
        gpt2 = model

    assert moved_units(Trained) == taught_units([1])


def test_training_goes_on_in_a_second_call(tmp_path) -> None:
    data = examples()
    trainer = trainer_of(tmp_path, data, trainer={"isolation": True})
    trainer.train()
    isolation = trainer.isolation
    trainer.train()
    assert trainer.isolation is isolation
    fresh = trainer_of(tmp_path, data)
    fresh.train()
    fresh.train()
    assert_same(trainer.model.state_dict(), fresh.model.state_dict(), **CLOSE)


# ------------------------------------------------------------------ what it saves

LOAD = """
import json, sys
sys.modules["gradroute"] = None  # as where it was never installed
import torch
from transformers import AutoModelForCausalLM

kinds = []
for folder in sys.argv[1:]:
    model, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    wrong = "missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"
    assert not any(info.get(kind) for kind in wrong), info
    arguments = torch.load(folder + "/training_args.bin", weights_only=False)
    torch.save(model.state_dict(), folder + "/state.pt")
    kinds.append(type(model).__name__)
json.dump([kinds, any(name.startswith("gradroute") and module for name, module in sys.modules.items())], sys.stdout)
"""


def loaded_without_gradroute(*folders):
    """What each folder holds; one process loads all."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    command = [sys.executable, "-c", LOAD, *map(str, folders)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [["GPT2LMHeadModel"] * len(folders), False]
    return [torch.load(folder / "state.pt") for folder in folders]


def test_what_it_saves_is_the_plain_models_and_loads_without_gradroute(tmp_path) -> None:
    trainer = trainer_of(tmp_path, examples(), save_strategy="steps", save_steps=STEPS, trainer={"isolation": True})
    trainer.train()
    trainer.save_model(str(tmp_path / "final"))
    folders = [tmp_path / "final", tmp_path / f"checkpoint-{STEPS}"]
    for folder, state in zip(folders, loaded_without_gradroute(*folders), strict=True):
        assert state.keys() == tiny_gpt2().state_dict().keys()
        assert_same(state, trainer.model.state_dict(), rtol=0, atol=0)
        assert (folder / "model.safetensors").is_file()


@pytest.mark.parametrize("isolation", [False, True])
@pytest.mark.parametrize("accumulation", [1, 2])
def test_resuming_gives_bitwise_what_going_on_gives(isolation: bool, accumulation: int, tmp_path) -> None:
    options = {
        "optim": "adamw_torch",
        "learning_rate": 0.05,
        "weight_decay": 0.1,
        "max_steps": 5,
        "save_strategy": "steps",
        "save_steps": 3,
        "gradient_accumulation_steps": accumulation,
    }
    given = {"isolation": isolation}
    whole = trainer_of(tmp_path, examples(), trainer=given, **options)
    whole.train()
    resumed = trainer_of(tmp_path, examples(), trainer=given, **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert_same(resumed.model.state_dict(), whole.model.state_dict(), rtol=0, atol=0)
    short = trainer_of(tmp_path, examples(), trainer=given, **{**options, "max_steps": 3, "save_strategy": "no"})
    short.train()
    assert differ(short.model.state_dict(), whole.model.state_dict())


def test_the_best_model_is_loaded_at_the_end_and_still_routed(tmp_path) -> None:
    options = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "best", "load_best_model_at_end": True}
    trainer = trainer_of(
        tmp_path,
        examples(),
        trainer={"eval_dataset": examples(), "evaluate_ablated": ["forget"]},
        metric_for_best_model="eval_ablated_forget_loss",
        **options,
    )
    trainer.train()
    assert trainer.state.best_metric == min(
        entry["eval_ablated_forget_loss"] for entry in trainer.state.log_history if "eval_loss" in entry
    )
    assert isinstance(trainer, RoutedTrainer)
