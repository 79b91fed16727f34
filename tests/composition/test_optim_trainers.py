"""`Isolation` under trainers of other libraries, which wrap the optimizer or call it with a closure."""

import lightning
import pytest
import torch
from torch.utils.data import DataLoader
from transformers import Trainer, TrainingArguments

from composition.forms import WARNINGS_OF_TORCH
from composition.language import LanguageModel, corpus, moved_units, taught_units
from composition.test_trainers import LEAF_SPEC
from gradroute.optim import Isolation
from gradroute.trainers import RoutedTrainer

pytestmark = [*WARNINGS_OF_TORCH, pytest.mark.parametrize("form", ["router", "routed_module"])]


def isolated(model: LanguageModel) -> torch.optim.Optimizer:
    """An optimizer whose weight decay alone would move every unit."""
    optimizer = torch.optim.AdamW(model.gpt2.parameters(), lr=0.1, weight_decay=0.5)
    Isolation(model.router or model.module.router, optimizer)
    return optimizer


class Task(lightning.LightningModule):
    def __init__(self, model: LanguageModel) -> None:
        super().__init__()
        self.model = model.module
        self.loss = model.loss
        self.optimizer = isolated(model)

    def training_step(self, batch, batch_idx):
        return self.loss(**batch)

    def configure_optimizers(self):
        return self.optimizer


@pytest.mark.supports("`optim.Isolation`: Lightning `Trainer`")
@pytest.mark.filterwarnings(LEAF_SPEC)
@pytest.mark.parametrize("ids", [[1], [0]], ids=["forget", "retain"])
def test_lightning_calls_the_optimizer_with_a_closure(form: str, ids: list[int], tmp_path) -> None:
    model = LanguageModel(form)
    examples = corpus(ids)
    trainer = lightning.Trainer(
        default_root_dir=tmp_path,
        max_steps=2,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Task(model), DataLoader(examples, batch_size=len(examples)))
    assert moved_units(model) == taught_units(ids)


@pytest.mark.supports("`optim.Isolation`: transformers `Trainer`")
@pytest.mark.parametrize("ids", [[1], [0]], ids=["forget", "retain"])
def test_transformers_wraps_the_optimizer_and_clips(form: str, ids: list[int], tmp_path) -> None:
    model = LanguageModel(form)
    examples = corpus(ids)
    arguments = TrainingArguments(
        output_dir=str(tmp_path),
        max_steps=2,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        max_grad_norm=0.1,
        remove_unused_columns=False,
        use_cpu=True,
        report_to=[],
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    kind, extra = (RoutedTrainer, {"router": model.router}) if model.form == "router" else (Trainer, {})
    optimizers = isolated(model), None
    kind(model=model.module, args=arguments, train_dataset=examples, optimizers=optimizers, **extra).train()
    assert moved_units(model) == taught_units(ids)
