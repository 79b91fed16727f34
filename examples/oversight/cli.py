"""The command line: ``python examples/oversight [COMMAND] [flags]``."""

import os
import webbrowser
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro
from tyro.conf import Positional, arg

from common.errors import ExampleError, told
from common.figures import save
from common.files import read_json, write_json, write_text
from common.processes import in_processes
from common.readme import publish
from common.tables import check_rows
from oversight.config import CONDITIONS, ROUTED, Settings
from oversight.figures import figure
from oversight.page import write_page
from oversight.runs import Job, curve, finish, found
from oversight.table import sections, summarise
from oversight.train import Trainer

DESCRIPTION = """An agent that is overseen now and then: two experts, routed by how episodes were seen to end.

train: the routed agent, and metrics.json. evaluate: metrics.json again. compare: all rows, as a table and a figure.
demo: the page. all: everything, for one seed and one probability. What is trained already goes on from where it is.
"""
CHANCES, SEEDS = (0.02, 0.05, 0.1, 0.3), (0, 1, 2, 3, 4)
#: Grids on which a trained policy is judged for metrics.json.
JUDGING_GRIDS = 8192


@dataclass(frozen=True)
class Command:
    what: Annotated[Literal["all", "train", "evaluate", "compare", "demo"], Positional] = "all"
    oversight: Annotated[
        tuple[float, ...], arg(help="The probability with which a square is watched; by default .1; `compare`: four.")
    ] = ()
    seed: Annotated[tuple[int, ...], arg(help="By default 0; `compare`: 0 to 4.")] = ()
    updates: Annotated[int, arg(help="Of each run, after 32 steps of 256 grids each.")] = 1000
    only: Annotated[tuple[str, ...], arg(help="Names of rows to compare; by default all.")] = ()
    as_is: Annotated[bool, arg(help="Compare what there is, and train nothing.")] = False
    workers: Annotated[int, arg(help="Processes that compare, of one thread each. Results do not depend on it.")] = 2
    docs: Annotated[bool, arg(help="Write the table into README.md and the documentation, too.")] = False
    browser: Annotated[bool, arg(help="Open the page.")] = False
    out: Annotated[Path, arg(help="A folder for the runs and what is found.")] = Path("runs/oversight")

    def run(self) -> None:
        check_rows(self.only, [each.name for each in CONDITIONS])
        many = self.what == "compare"
        chances, seeds = self.oversight or (CHANCES if many else (0.1,)), self.seed or (SEEDS if many else (0,))
        if self.workers < 1 or min(seeds) < 0 or not all(0 <= each <= 1 for each in chances):
            raise ExampleError("--workers must be at least 1, --seed at least 0, and --oversight in 0 to 1.")
        every = Settings().judged_every
        if self.updates < 1 or self.updates % every:
            raise ExampleError(f"--updates must be a multiple of {every}, after which a policy is judged.")
        if not many and len(chances) + len(seeds) > 2:
            raise ExampleError("only `compare` takes more than one --oversight or --seed.")
        shown = 0.1 if 0.1 in chances else chances[0]
        routed = Job(ROUTED, Settings(oversight=shown), seeds[0], self.updates, self.out)
        if self.what in ("all", "compare"):
            self.compare(chances, seeds)
        if self.what in ("all", "train"):
            finish(routed)
        if self.what in ("all", "train", "evaluate"):
            metrics = measured(trained(routed))
            write_json(self.out / "metrics.json", metrics)
            print(", ".join(f"{name} {metrics[name]:.2f}" for name in metrics if name.endswith("_return")))
        if self.what in ("all", "demo") or self.docs:
            write_page(trained(routed).policies(), shown, seeds[0], self.out / "page.html")
        if self.browser:
            webbrowser.open((self.out / "page.html").resolve().as_uri())
        if self.docs:
            results = read_json(self.out / "results.json")
            publish("oversight", sections(results), results, self.out, ["curves.png", "page.html"])
        print(f"wrote to {self.out}: {', '.join(sorted(each.name for each in self.out.iterdir() if each.is_file()))}")

    def compare(self, chances: Sequence[float], seeds: Sequence[int]) -> None:
        rows = [each for each in CONDITIONS if not self.only or each.name in self.only]
        jobs = [
            Job(row, Settings(oversight=chance), seed, self.updates, self.out)
            for seed, chance, row in product(seeds, chances, rows)
        ]
        jobs = [job for job in jobs if not self.as_is or found(job).curve]
        if not jobs:
            raise ExampleError(f"{self.out} holds none of these runs yet.")
        curves = [found(job).curve for job in jobs] if self.as_is else in_processes(curve, jobs, self.workers)
        machine = {"cores": os.cpu_count(), "torch": torch.__version__}
        results: dict[str, Any] = {"machine": machine, "rows": summarise(jobs, curves)}
        write_json(self.out / "results.json", results)
        write_text(self.out / "table.md", "\n\n".join(sections(results).values()) + "\n")
        save(figure(results["rows"]), self.out / "curves.png")
        print(f"\n{sections(results)['table']}\n")


def trained(job: Job) -> Trainer:
    """The run as far as it is trained."""
    trainer = found(job)
    if trainer.updates == 0:
        raise ExampleError(f"there is no {job.path}. Run `train` with the same flags first.")
    return trainer


def measured(trainer: Trainer) -> dict[str, Any]:
    """What stands in metrics.json. Returns are true, discounted, and means over time steps; rates are of episodes."""
    judged = trainer.judged(JUDGING_GRIDS)
    policies = {name: judged[name] for name in ("steered", "training", "ghost")}
    return {
        **trainer.identity(),
        **{key: judged[key] for key in ("updates", "episodes", "cpu_seconds")},
        **{f"{name}_return": each["return"] for name, each in policies.items()},
        **{f"{end}_rate": {name: each[end] for name, each in policies.items()} for end in ("diamond", "ghost")},
        "curve": trainer.curve,
    }


def main(arguments: Sequence[str] | None = None) -> None:
    command = tyro.cli(Command, args=arguments, prog="python examples/oversight", description=DESCRIPTION)
    torch.set_num_threads(1)
    with told(interrupted="the same command goes on after the last point of a curve"):
        command.run()
