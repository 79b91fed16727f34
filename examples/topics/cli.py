"""The command line: ``python examples/topics [COMMAND] [flags]``."""

import os
import webbrowser
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro
from tyro.conf import Positional, arg

from common.debian import make_sure_of
from common.errors import ExampleError, told
from common.figures import save
from common.files import fill_page, read_json, write_json
from common.readme import publish, record
from common.sources import default_root
from common.tables import check_rows
from common.verses import TRANSLATIONS, load
from common.wordnet import WORDNET, read_glosses
from topics.config import QUICK, ROUTED, ROWS, TWIN, Settings
from topics.figures import matrices
from topics.measure import errors
from topics.runs import Job, finish, found, known, results
from topics.show import samples
from topics.table import sections
from topics.text import Corpus, corpus

DESCRIPTION = """Topics that can be taken out of one language model, each by itself: half of each is labeled.

train: the routed model, its twin without routing, and metrics.json. evaluate: metrics.json again. demo: a page on which
modules are switched on and off. compare: filters, too, as tables and a figure. all: train and demo. What is trained
already goes on from where it is.
"""
PAGE = Path(__file__).with_name("page.html")


@dataclass(frozen=True)
class Command:
    what: Annotated[Literal["all", "train", "evaluate", "compare", "demo"], Positional] = "all"
    quick: Annotated[bool, arg(help="Fewer steps: minutes for the routed model and its twin.")] = False
    seed: Annotated[tuple[int, ...], arg(help="By default 0; `compare`: 0 to 2, and 0 with --quick.")] = ()
    only: Annotated[tuple[str, ...], arg(help="Names of rows to compare; by default all.")] = ()
    so_far: Annotated[bool, arg(help="Compare what has been measured, and train nothing.")] = False
    docs: Annotated[bool, arg(help="Write the tables into README.md and the documentation, too.")] = False
    browser: Annotated[bool, arg(help="Open the page.")] = False
    threads: Annotated[int, arg(help="Of torch. Results are the same bit for bit only with as many.")] = 2
    out: Annotated[Path, arg(help="A folder for the runs and what is found.")] = Path("runs/topics")
    data: Annotated[Path, arg(help="Where the texts are kept, and fetched to.")] = field(default_factory=default_root)

    def run(self) -> None:
        check_rows(self.only, list(ROWS))
        seeds = self.seed or ((0, 1, 2) if self.what == "compare" and not self.quick else (0,))
        if min(seeds) < 0 or self.threads < 1:
            raise ExampleError("--seed must be at least 0, and --threads at least 1.")
        if self.what != "compare" and len(seeds) > 1:
            raise ExampleError("only `compare` takes more than one --seed.")
        torch.set_num_threads(self.threads)
        settings = QUICK if self.quick else Settings()
        texts = self.texts(settings)
        routed, twin = (Job(condition, settings, seeds[0], self.out) for condition in (ROUTED, TWIN))
        if self.what == "compare":
            self.compare(seeds, settings, texts)
        if self.what in ("all", "train"):
            finish(twin, texts)
            finish(routed, texts)
        if self.what in ("all", "train", "evaluate"):
            write_json(self.out / "metrics.json", evaluated(routed, twin, texts))
        if self.what in ("all", "demo"):
            fill_page(PAGE, samples(found(routed, texts, settings.steps), texts), self.out / "page.html")
            if self.browser:
                webbrowser.open((self.out / "page.html").resolve().as_uri())
        if self.docs:
            everything = read_json(self.out / "results.json")
            publish("topics", sections(everything), everything, self.out, ["matrices.png", "page.html"])
        print(f"wrote to {self.out}: {', '.join(sorted(each.name for each in self.out.iterdir()))}")

    def texts(self, settings: Settings) -> Corpus:
        make_sure_of(WORDNET, self.data.expanduser() / WORDNET.folder)
        glosses = list(read_glosses(self.data.expanduser() / WORDNET.folder))
        return corpus(glosses, load(self.data, TRANSLATIONS), settings)

    def compare(self, seeds: Sequence[int], settings: Settings, texts: Corpus) -> None:
        conditions = [each for row, models in ROWS.items() if not self.only or row in self.only for each in models]
        jobs = [Job(condition, settings, seed, self.out) for seed, condition in product(seeds, conditions)]
        jobs = [job for job in jobs if not self.so_far or known(job, texts)]
        if not jobs:
            raise ExampleError("nothing of the tables has been measured so far. Leave --so-far out.")
        models = []
        for job in jobs:
            measures = results(job, texts)
            about = {"name": job.condition.name, "what": job.condition.what, "seed": job.seed}
            if job.condition == ROUTED:
                about["errors"] = errors(found(job, texts))
            kept = ("losses", "relearning", "cpu_seconds", *(["curve"] if job.condition == TWIN else []))
            models.append({**about, **{name: measures[name] for name in kept}})
        everything: dict[str, Any] = {
            "settings": measures["identity"]["settings"],
            "machine": {"cores": os.cpu_count(), "torch": torch.__version__},
            "models": models,
        }
        record(everything, sections(everything), self.out)
        save(matrices(models), self.out / "matrices.png")
        print(f"\n{(self.out / 'table.md').read_text(encoding='utf-8')}")


def evaluated(routed: Job, twin: Job, texts: Corpus) -> dict[str, Any]:
    """What stands in metrics.json. Losses are in nats per byte of held-out text."""
    for job in (routed, twin):
        found(job, texts, at_least=job.settings.steps)
    of_routed, of_twin = results(routed, texts), results(twin, texts)
    return {
        "losses": of_routed["losses"],
        "losses_twin": of_twin["losses"][""],
        "relearning": of_routed["relearning"],
        "cpu_seconds": {"routed": of_routed["cpu_seconds"], "twin": of_twin["cpu_seconds"]},
        **of_routed["identity"],
    }


def main(arguments: Sequence[str] | None = None) -> None:
    command = tyro.cli(Command, args=arguments, prog="python examples/topics", description=DESCRIPTION)
    with told(interrupted="the same command goes on from the last saved step"):
        command.run()
