"""All runs of a folder: a file each, from which an interrupted run goes on."""

from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm  # type: ignore[import-untyped]

from common.files import read_json, write_json
from common.resumable import as_saved, save
from language.config import Condition, Settings
from language.measure import measured
from language.tokens import Corpus
from language.train import Trainer


class Job(NamedTuple):
    condition: Condition
    settings: Settings
    seed: int
    folder: Path

    @property
    def path(self) -> Path:
        share = f"-labeled{self.settings.labeled:g}" if self.condition.uses_labels else ""
        return self.folder / "runs" / f"{self.condition.name}{share}-seed{self.seed}.pt"


def found(job: Job, corpus: Corpus) -> Trainer:
    """The job's run as far as it is done; a new one where its file is absent, or is that of other settings."""
    vocabulary = corpus.tokenizer.get_vocab_size()
    return as_saved(Trainer(job.condition, job.settings, corpus.train, vocabulary, job.seed), job.path)


def finish(job: Job, corpus: Corpus) -> Trainer:
    """The job's run, trained to its end and saved now and then."""
    trainer = found(job, corpus)
    steps = job.settings.steps
    with tqdm(total=steps, initial=trainer.steps, desc=job.condition.name, unit="step", disable=None) as bar:
        while trainer.steps < steps:
            trainer.train(min(steps, trainer.steps + job.settings.saved_every))
            save(trainer, job.path)
            bar.update(trainer.steps - bar.n)
    return trainer


def results(job: Job, corpus: Corpus) -> dict[str, Any]:
    """What was measured of the job's run, which is trained first, and measured once."""
    path = job.path.with_suffix(".json")
    if path.is_file():
        known: dict[str, Any] = read_json(path)
        if known["identity"] == found(job, corpus).identity():
            return known
    trainer = finish(job, corpus)
    about = {"identity": trainer.identity(), "cpu_seconds": trainer.cpu_seconds}
    write_json(path, {**measured(trainer, corpus), **about})
    new: dict[str, Any] = read_json(path)
    return new
