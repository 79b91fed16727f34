"""All runs of a folder: a file each, from which an interrupted run goes on."""

from pathlib import Path
from typing import Any, NamedTuple

from common.files import read_json, write_json
from common.resumable import as_saved, finished, known_measures
from topics.config import TWIN, Condition, Settings
from topics.measure import measured, topic_losses
from topics.text import Corpus
from topics.train import Trainer


class Job(NamedTuple):
    condition: Condition
    settings: Settings
    seed: int
    folder: Path

    @property
    def path(self) -> Path:
        without = self.condition.without
        name = "-".join([self.condition.name, *(["without", *without] if without else []), f"seed{self.seed}"])
        return self.folder / "runs" / f"{name}.pt"


def _new(job: Job, corpus: Corpus) -> Trainer:
    return Trainer(job.condition, job.settings, corpus.train, corpus.tokenizer.get_vocab_size(), job.seed)


def found(job: Job, corpus: Corpus, at_least: int = 0) -> Trainer:
    """The job's run as far as it is done; a new one where its file is absent, or is that of other settings."""
    return as_saved(_new(job, corpus), job.path, at_least)


def finish(job: Job, corpus: Corpus) -> Trainer:
    """The job's run, trained to its end and saved now and then."""

    def look(trainer: Trainer) -> None:
        if job.condition == TWIN:  # what others are asked: after which part of its training it was as good
            trainer.curve.append((trainer.steps, topic_losses(trainer.model, corpus)))

    settings, new = job.settings, _new(job, corpus)
    if not job.path.is_file():
        look(new)
    return finished(new, job.path, settings.steps, settings.saved_every, bar=job.path.stem, look=look)


def known(job: Job, corpus: Corpus) -> dict[str, Any] | None:
    """What was measured of the job's run, if it was."""
    return known_measures(job.path.with_suffix(".json"), _new(job, corpus))


def results(job: Job, corpus: Corpus) -> dict[str, Any]:
    """What was measured of the job's run, which is trained first, and measured once."""
    before = known(job, corpus)
    if before is not None:
        return before
    trainer = finish(job, corpus)
    about = {"identity": trainer.identity(), "cpu_seconds": trainer.cpu_seconds, "curve": trainer.curve}
    path = job.path.with_suffix(".json")
    write_json(path, {**measured(trainer, corpus), **about})
    found_now: dict[str, Any] = read_json(path)
    return found_now
