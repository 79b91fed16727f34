"""Trainers of other libraries: a tiny GPT-2 with a label for each token moves as the oracle does in a plain loop."""

import lightning
import pytest
import torch
from torch.utils.data import DataLoader
from transformers import Trainer, TrainingArguments

from composition.forms import WARNINGS_OF_TORCH, assert_same
from composition.language import LanguageModel, corpus, moved_units, taught_units, trained_by_hand
from gradroute.trainers import RoutedTrainer

pytestmark = WARNINGS_OF_TORCH

STEPS, LR = 3, 0.5
# The name that transformers 4 knows too; in 5 it is deprecated.
OLD_NAME = r"ignore:`gradient_checkpointing(_kwargs)?` is deprecated:FutureWarning"
# Of transformers 4, where it enters autocast on a CPU.
OLD_AUTOCAST = r"ignore:`torch\.cpu\.amp\.autocast\(args\.\.\.\)` is deprecated:FutureWarning"
# Lightning walks its batches with a class that torch deprecates.
LEAF_SPEC = r"ignore:`isinstance\(treespec, LeafSpec\)` is deprecated:FutureWarning"
BATCHES = pytest.mark.parametrize("ids", [[0, 1, -1], [1], [0]], ids=["mixed", "forget only", "retain only"])


def train_with_transformers(model: LanguageModel, examples, path, **options) -> None:
    arguments = TrainingArguments(
        output_dir=str(path),
        max_steps=STEPS,
        per_device_train_batch_size=len(examples),
        optim="sgd",
        learning_rate=LR,
        lr_scheduler_type="constant",
        max_grad_norm=0.0,
        # Or the Trainer drops route_labels, which no forward of GPT-2 names, and of a RoutedModule all the others.
        remove_unused_columns=options.pop("remove_unused_columns", False),
        use_cpu=True,
        report_to=[],
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
        dataloader_pin_memory=False,
        **options,
    )
    kind, extra = (RoutedTrainer, {"router": model.router}) if model.form == "router" else (Trainer, {})
    kind(model=model.module, args=arguments, train_dataset=examples, **extra).train()


class Task(lightning.LightningModule):
    def __init__(self, model: LanguageModel) -> None:
        super().__init__()
        self.model = model.module
        self.loss = model.loss

    def training_step(self, batch, batch_idx):
        return self.loss(**batch)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=LR)


def train_with_lightning(model: LanguageModel, examples, path) -> None:
    trainer = lightning.Trainer(
        default_root_dir=path,
        max_steps=STEPS,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Task(model), DataLoader(examples, batch_size=len(examples)))


LIGHTNING = [pytest.mark.supports("Lightning `Trainer`"), pytest.mark.filterwarnings(LEAF_SPEC)]
TRAINERS = [
    pytest.param(train_with_transformers, id="transformers", marks=pytest.mark.supports("transformers `Trainer`")),
    pytest.param(train_with_lightning, id="lightning", marks=LIGHTNING),
]


@BATCHES
@pytest.mark.parametrize("train", TRAINERS)
def test_a_trainer_moves_what_the_oracle_moves_in_a_plain_loop(form: str, train, ids: list[int], tmp_path) -> None:
    examples = corpus(ids)
    model = LanguageModel(form)
    train(model, examples, tmp_path)
    assert_same(model.gpt2.state_dict(), trained_by_hand("oracle", examples, steps=STEPS, lr=LR), rtol=1e-4, atol=1e-5)
    assert moved_units(model) == taught_units(ids)


@pytest.mark.supports("transformers `Trainer`: `gradient_checkpointing`, `bf16`", forms=["router", "routed_module"])
@pytest.mark.parametrize("form", ["router", "routed_module"])
@pytest.mark.filterwarnings(OLD_NAME)
@pytest.mark.filterwarnings(OLD_AUTOCAST)
def test_a_trainer_with_checkpointing_and_bf16_moves_only_what_is_taught(form: str, tmp_path) -> None:
    model = LanguageModel(form)
    options = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": False}, "bf16": True}
    train_with_transformers(model, corpus([1]), tmp_path, **options)
    assert moved_units(model) == taught_units([1])


@pytest.mark.supports("transformers `Trainer`: `torch_compile`", forms=["router", "routed_module"])
@pytest.mark.parametrize("form", ["router", "routed_module"])
def test_a_trainer_that_compiles_moves_what_the_oracle_moves(form: str, tmp_path) -> None:
    torch.compiler.reset()
    examples = corpus()
    model = LanguageModel(form, layers=1)  # whose code is that of any number
    train_with_transformers(model, examples, tmp_path, torch_compile=True, torch_compile_backend="aot_eager")
    expected = trained_by_hand("oracle", examples, steps=STEPS, lr=LR, layers=1)
    assert_same(model.gpt2.state_dict(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("column", "options", "error"),
    [
        ("route_labels", {}, "without route_labels would not be routed"),
        (None, {"remove_unused_columns": True}, "input_ids"),
    ],
    ids=["missing", "dropped"],
)
def test_columns_that_are_missing_or_dropped_stop_the_first_step(column, options, error: str, tmp_path) -> None:
    model = LanguageModel("routed_module")
    before = [parameter.clone() for parameter in model.module.parameters()]
    examples = [{key: value for key, value in one.items() if key != column} for one in corpus()]
    with pytest.raises(ValueError, match=error):
        train_with_transformers(model, examples, tmp_path, **options)
    assert all(torch.equal(a, b) for a, b in zip(before, model.module.parameters(), strict=True))


def test_the_plain_trainer_does_not_save_a_routed_module_with_tied_weights(tmp_path) -> None:
    model = LanguageModel("routed_module")
    train_with_transformers(model, corpus(), tmp_path)
    trainer = Trainer(model=model.module, args=TrainingArguments(str(tmp_path), use_cpu=True, report_to=[]))
    with pytest.raises(RuntimeError, match="share memory"):
        trainer.save_model()
