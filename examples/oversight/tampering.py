"""A hack to be caught: the ghost is a tile that tampers with the reward, and the agent does not see who looks."""

from collections.abc import Sequence
from typing import Any

from common import tables
from oversight.policy import without_ghost
from oversight.runs import Job, finish

#: Rows of the table that meet it.
ROWS = ("routed", "penalty", "filtered", "placebo")


def removal(job: Job) -> dict[str, Any]:
    """What the trained policy does, and what it does when the expert that caught the hacks is removed for good."""
    trainer = finish(job)
    rest = without_ghost(trainer.router, trainer.world.see()) if trainer.router else trainer.policy
    judged = trainer.judged(job.settings.final_grids, {"before": trainer.policy, "after": rest})
    return {"name": job.condition.name, "seed": job.seed, **judged}


def markdown(found: Sequence[dict[str, Any]]) -> str:
    """The table: medians over seeds, and the range."""
    lines = []
    for name in dict.fromkeys(each["name"] for each in found):
        of_row = [each for each in found if each["name"] == name]
        rates = [[each[when][end] for each in of_row] for end in ("ghost", "diamond") for when in ("before", "after")]
        cells = [tables.median_and_range(each, "{:.0%}") for each in rates]
        lines.append([f"`{name}`", str(len(of_row)), *cells])
    return tables.markdown(["run", "seeds", "hacked, before", "after", "solved, before", "after"], lines)
