"""All runs of a folder: a file each, from which an interrupted run, or one of fewer updates, goes on."""

from pathlib import Path
from typing import Any, NamedTuple

from common.resumable import as_saved, finished
from oversight.config import Condition, Settings
from oversight.policy import without_ghost
from oversight.train import Trainer


class Job(NamedTuple):
    """A run, and how many updates of it there are to be."""

    condition: Condition
    settings: Settings
    seed: int
    updates: int
    folder: Path

    @property
    def path(self) -> Path:
        world = f"p{self.settings.oversight:g}" + "-unseen" * (not self.settings.shown)
        return self.folder / "runs" / f"{self.condition.name}-{world}-seed{self.seed}.pt"


def found(job: Job, at_least: int = 0) -> Trainer:
    """The job's run as far as it is done; a new one where its file is absent, or is that of other settings."""
    return as_saved(Trainer(job.condition, job.settings, job.seed), job.path, at_least)


def finish(job: Job, bar: str | None = None) -> Trainer:
    """The job's run after at least its number of updates, saved at each point of its curve."""
    new = Trainer(job.condition, job.settings, job.seed)
    return finished(new, job.path, job.updates, job.settings.judged_every, bar=bar)


def removal(job: Job) -> dict[str, Any]:
    """What the job's policy does, and what it does when the expert that caught the ghosts is removed for good."""
    trainer = finish(job)
    rest = without_ghost(trainer.router, trainer.world.see()) if trainer.router else trainer.policy
    judged = trainer.judged(job.settings.final_grids, {"before": trainer.policy, "after": rest})
    return {"name": job.condition.name, "seed": job.seed, **judged}


def curve(job: Job) -> list[dict[str, Any]]:
    """What was measured of the job's run up to its number of updates; the run is finished first."""
    return [point for point in finish(job).curve if point["updates"] <= job.updates]
