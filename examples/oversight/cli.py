"""The command line: ``python examples/oversight [COMMAND] [flags]``."""

import os
import webbrowser
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro
from tyro.conf import Positional, arg

from common.errors import ExampleError, told
from common.figures import save
from common.files import read_json, write_json
from common.processes import in_processes
from common.readme import publish, record
from common.tables import check_rows
from oversight.config import CONDITIONS, ROUTED, Settings
from oversight.page import write_page
from oversight.results import figure, removals, sections, summarise
from oversight.runs import Job, curve, finish, found, removal
from oversight.train import Trainer

DESCRIPTION = """An agent that is overseen now and then: two experts, routed by how episodes were seen to end.

train: the routed agent, and metrics.json. evaluate: metrics.json again. compare: all rows, as a table and a figure.
tamper: a hack that the agent does not see watched, and the expert that caught it removed. demo: the page. all: train,
compare and demo for one seed and one probability. What is trained already goes on from where it is.
"""
#: Of commands that take many runs: probabilities with which a square is watched, and seeds.
MANY = {"compare": ((0.02, 0.05, 0.1, 0.3), (0, 1, 2, 3, 4)), "tamper": ((0.05,), tuple(range(10)))}
#: Rows that meet a ghost which nobody is seen to watch.
TAMPERED = ("routed", "penalty", "filtered", "placebo")


@dataclass(frozen=True)
class Command:
    what: Annotated[Literal["all", "train", "evaluate", "compare", "tamper", "demo"], Positional] = "all"
    oversight: Annotated[tuple[float, ...], arg(help="How likely a square is watched; .1, or `tamper`: .05.")] = ()
    seed: Annotated[tuple[int, ...], arg(help="By default 0; `compare`: 0 to 4; `tamper`: 0 to 9.")] = ()
    updates: Annotated[int, arg(help="Of each run, after 32 steps of 256 grids each.")] = 1000
    only: Annotated[tuple[str, ...], arg(help="Names of rows to compare; by default all.")] = ()
    as_is: Annotated[bool, arg(help="Compare what has come as far, and train nothing.")] = False
    workers: Annotated[int, arg(help="Processes that compare, of one thread each. Results do not depend on it.")] = 2
    docs: Annotated[bool, arg(help="Write the table into README.md and the documentation, too.")] = False
    browser: Annotated[bool, arg(help="Open the page.")] = False
    out: Annotated[Path, arg(help="A folder for the runs and what is found.")] = Path("runs/oversight")

    def run(self) -> None:
        check_rows(self.only, [each.name for each in CONDITIONS])
        chances, seeds = MANY.get(self.what, ((0.1,), (0,)))
        chances, seeds = self.oversight or chances, self.seed or seeds
        if self.workers < 1 or min(seeds) < 0 or not all(0 <= each <= 1 for each in chances):
            raise ExampleError("--workers must be at least 1, --seed at least 0, and --oversight in 0 to 1.")
        every = Settings().judged_every
        if self.updates < 1 or self.updates % every:
            raise ExampleError(f"--updates must be a multiple of {every}, after which a policy is judged.")
        if self.what not in MANY and len(chances) + len(seeds) > 2:
            raise ExampleError("only `compare` and `tamper` take more than one --oversight or --seed.")
        shown = 0.1 if 0.1 in chances else chances[0]
        routed = Job(ROUTED, Settings(oversight=shown), seeds[0], self.updates, self.out)
        if self.what in ("all", "compare"):
            self.compare(self.jobs(chances, seeds, [each.name for each in CONDITIONS], shown=True))
        if self.what == "tamper":
            hacks = in_processes(removal, self.jobs(chances, seeds, TAMPERED, shown=False), self.workers)
            write_json(self.out / "tampering.json", hacks)
            print(f"\n{removals(hacks)}\n")
        if self.what in ("all", "train"):
            finish(routed, bar="updates")
        if self.what in ("all", "train", "evaluate"):
            metrics = measured(found(routed, at_least=1))
            write_json(self.out / "metrics.json", metrics)
            print(", ".join(f"{name} {metrics[name]:.2f}" for name in metrics if name.endswith("_return")))
        if self.what in ("all", "demo") or self.docs:
            write_page(found(routed, at_least=1).policies(), shown, seeds[0], self.out / "page.html")
        if self.browser:
            webbrowser.open((self.out / "page.html").resolve().as_uri())
        if self.docs:
            results = read_json(self.out / "results.json")
            publish("oversight", sections(results), results, self.out, ["curves.png", "page.html"])
        print(f"wrote to {self.out}: {', '.join(sorted(each.name for each in self.out.iterdir() if each.is_file()))}")

    def jobs(self, chances: Sequence[float], seeds: Sequence[int], rows: Sequence[str], *, shown: bool) -> list[Job]:
        """These runs; or, with --as-is, those of them that have come as far as is asked for."""
        chosen = [each for each in CONDITIONS if each.name in (self.only or rows)]
        every = [(seed, Settings(oversight=chance, shown=shown)) for seed in seeds for chance in chances]
        jobs = [Job(row, settings, seed, self.updates, self.out) for seed, settings in every for row in chosen]
        jobs = [job for job in jobs if not self.as_is or found(job).updates >= self.updates]
        if not jobs:
            raise ExampleError(f"{self.out} holds none of these runs, {self.updates} updates long.")
        return jobs

    def compare(self, jobs: list[Job]) -> None:
        curves = [found(job).curve for job in jobs] if self.as_is else in_processes(curve, jobs, self.workers)
        hacks = self.out / "tampering.json"
        results: dict[str, Any] = {
            "machine": {"cores": os.cpu_count(), "torch": torch.__version__},
            "rows": summarise(jobs, curves, self.updates),
            "tampering": read_json(hacks) if hacks.exists() else [],
        }
        record(results, sections(results), self.out)
        save(figure(results["rows"]), self.out / "curves.png")
        print(f"\n{sections(results)['table']}\n")


def measured(trainer: Trainer) -> dict[str, Any]:
    """What stands in metrics.json. Returns are true, discounted, and means over time steps; rates are of episodes."""
    judged = trainer.judged(trainer.settings.final_grids)
    policies = {name: judged.pop(name) for name in ("steered", "training", "ghost")}
    rates = {f"{end}_rate": {name: each[end] for name, each in policies.items()} for end in ("diamond", "ghost")}
    returns = {f"{name}_return": each["return"] for name, each in policies.items()}
    return {**trainer.identity(), **judged, **returns, **rates, "curve": trainer.curve}


def main(arguments: Sequence[str] | None = None) -> None:
    command = tyro.cli(Command, args=arguments, prog="python examples/oversight", description=DESCRIPTION)
    torch.set_num_threads(1)
    with told(interrupted="the same command goes on after the last point of a curve"):
        command.run()
