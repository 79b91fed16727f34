"""All runs of a folder: a file each, from which an interrupted run goes on."""

from pathlib import Path
from typing import Any, NamedTuple

from common.files import write_json
from common.gpt2 import loss_per_byte
from common.resumable import as_saved, finished, known_measures
from language.config import BY_LABELS, DETECTOR, FORGET, PERFECT, RETAIN, TWIN, Condition, Settings
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
    return as_saved(_new(job, corpus), job.path)


def _new(job: Job, corpus: Corpus) -> Trainer:
    return Trainer(job.condition, job.settings, corpus.train, corpus.tokenizer.get_vocab_size(), job.seed)


def finish(job: Job, corpus: Corpus) -> Trainer:
    """The job's run, trained to its end and saved now and then."""

    def look(trainer: Trainer) -> None:
        if job.condition == TWIN:  # what others are asked: after which part of its training it was as good
            english = loss_per_byte(trainer.model, corpus.test.of(RETAIN), corpus.n_bytes)
            trainer.curve.append((trainer.steps, english))

    settings, new = job.settings, _new(job, corpus)
    return finished(new, job.path, settings.steps, settings.saved_every, bar=job.condition.name, look=look)


def errs_in(trainer: Trainer) -> tuple[int, int]:
    """How many Spanish sequences a trainer does not leave out as "forget", and how many English ones it does."""
    spanish, out = trainer.data.language == FORGET, trainer.known == FORGET
    return int((spanish & ~out).sum()), int((out & ~spanish).sum())


def known(job: Job, corpus: Corpus) -> dict[str, Any] | None:
    """What was measured of the job's run, if it was."""
    measures = known_measures(job.path.with_suffix(".json"), _new(job, corpus))
    return measures if measures and "probe" in measures else None


def results(job: Job, corpus: Corpus) -> dict[str, Any]:
    """What was measured of the job's run, which is trained first, and measured once."""
    before = known(job, corpus)
    if before is not None:
        return before
    trainer = finish(job, corpus)
    about = {"identity": trainer.identity(), "cpu_seconds": trainer.cpu_seconds, "curve": trainer.curve}
    write_json(job.path.with_suffix(".json"), {**measured(trainer, corpus), **about})
    return results(job, corpus)


def the_same(job: Job, settings: Settings, corpus: Corpus) -> Job:
    """The job; or the perfect filter's, with these settings, where this one leaves out all Spanish and no more."""
    if job.condition in (BY_LABELS, DETECTOR) and errs_in(_new(job, corpus)) == (0, 0):
        return job._replace(condition=PERFECT, settings=settings)
    return job
