"""All runs of a folder: a file each, from which an interrupted run goes on."""

from pathlib import Path
from typing import NamedTuple

import torch
from tqdm import tqdm  # type: ignore[import-untyped]

from common.errors import ExampleError
from common.files import replacing
from language.config import Condition, Settings
from language.tokens import Corpus
from language.train import Trainer


class Job(NamedTuple):
    condition: Condition
    settings: Settings
    seed: int
    folder: Path

    @property
    def path(self) -> Path:
        name = f"{self.condition.name}-labeled{self.settings.labeled:g}-seed{self.seed}.pt"
        return self.folder / "runs" / name


def found(job: Job, corpus: Corpus) -> Trainer:
    """The job's run as far as it is done; a new one where its file is absent, or is that of other settings."""
    trainer = Trainer(job.condition, job.settings, corpus.train, corpus.tokenizer.get_vocab_size(), job.seed)
    if job.path.is_file():
        try:
            trainer.restore(torch.load(job.path, weights_only=True))
        except Exception as error:  # of many kinds
            raise ExampleError(f"{job.path} cannot be read ({error}). Delete it.") from error
    return trainer


def finish(job: Job, corpus: Corpus) -> Trainer:
    """The job's run, trained to its end and saved now and then."""
    trainer = found(job, corpus)
    steps = job.settings.steps
    with tqdm(total=steps, initial=trainer.steps, desc=job.condition.name, unit="step", disable=None) as bar:
        while trainer.steps < steps:
            trainer.train(min(steps, trainer.steps + job.settings.saved_every))
            with replacing(job.path) as temporary:
                torch.save(trainer.state(), temporary)
            bar.update(trainer.steps - bar.n)
    return trainer
