"""The command line: ``python examples/language [COMMAND] [flags]``."""

import os
import sys
import webbrowser
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro
from transformers import PreTrainedTokenizerFast
from tyro.conf import Positional, arg

from common.errors import ExampleError, told
from common.figures import save
from common.files import read_json, write_json, write_text
from common.readme import publish, record
from common.sources import default_root
from common.tables import check_rows
from common.tokens import END
from common.verses import TRANSLATIONS, load
from language.config import AT_EACH_SHARE, BY_LABELS, CONDITIONS, LANGUAGES, LITTLE, QUICK, ROUTED, TWIN, Settings
from language.figures import relearning
from language.figures import shares as by_share
from language.measure import RELEARNING, bypasses
from language.model import forget, smaller
from language.runs import Job, finish, found, known, results, the_same
from language.show import page, samples, terminal
from language.table import sections, summarise
from language.tokens import Corpus, corpus
from language.train import Trainer

DESCRIPTION = """A language that can be taken out of a language model: Spanish in a block of units, half of it labeled.

train: the routed model, its twin without routing, and metrics.json. evaluate: metrics.json again. demo: the same
verses before and after, as text and as a page; and the smaller model, as transformers loads it. compare: all rows, as
a table and a figure. all: train and demo. What is trained already goes on from where it is.
"""
SHARES, SEEDS = (0.5, 1.0, 0.8, 0.2), (0, 1, 2)


@dataclass(frozen=True)
class Command:
    what: Annotated[Literal["all", "train", "evaluate", "compare", "demo"], Positional] = "all"
    quick: Annotated[bool, arg(help="Fewer steps: minutes for the routed model and its twin.")] = False
    seed: Annotated[tuple[int, ...], arg(help="By default 0; `compare`: 0 to 2, and 0 with --quick.")] = ()
    labeled: Annotated[
        tuple[float, ...], arg(help="Part of the Spanish that is labeled; by default .5; `compare`: four, .5 if quick.")
    ] = ()
    only: Annotated[tuple[str, ...], arg(help="Names of rows to compare; by default all.")] = ()
    so_far: Annotated[bool, arg(help="Compare what has been measured, and train nothing.")] = False
    docs: Annotated[bool, arg(help="Write the table into README.md and the documentation, too.")] = False
    browser: Annotated[bool, arg(help="Open the page.")] = False
    threads: Annotated[int, arg(help="Of torch. Results are the same bit for bit only with as many.")] = 2
    out: Annotated[Path, arg(help="A folder for the runs and what is found.")] = Path("runs/language")
    data: Annotated[Path, arg(help="Where the texts are kept, and fetched to.")] = field(default_factory=default_root)

    def run(self) -> None:
        check_rows(self.only, [each.name for each in CONDITIONS])
        full = self.what == "compare" and not self.quick
        shares, seeds = self.labeled or (SHARES if full else (0.5,)), self.seed or (SEEDS if full else (0,))
        if min(seeds) < 0 or not all(0 < share <= 1 for share in shares) or self.threads < 1:
            raise ExampleError("--seed must be at least 0, --labeled above 0 and at most 1, and --threads at least 1.")
        if self.what != "compare" and len(shares) + len(seeds) > 2:
            raise ExampleError("only `compare` takes more than one --labeled or --seed.")
        torch.set_num_threads(self.threads)
        settings = QUICK if self.quick else Settings()
        texts = corpus(load(self.data, TRANSLATIONS), settings)
        routed = Job(ROUTED, replace(settings, labeled=shares[0]), seeds[0], self.out)
        twin = Job(TWIN, settings, seeds[0], self.out)
        if self.what == "compare":
            self.compare(shares, seeds, settings, texts)
        if self.what in ("all", "train"):
            finish(twin, texts)
            finish(routed, texts)
        if self.what in ("all", "train", "evaluate"):
            metrics = evaluated(trained(routed, texts), results(routed, texts), results(twin, texts))
            write_json(self.out / "metrics.json", metrics)
            print(", ".join(f"{key} {value:.3f}" for key, value in metrics.items() if "loss" in key))
        if self.what in ("all", "demo"):
            self.demo(trained(routed, texts), texts)
        if self.docs:
            everything = read_json(self.out / "results.json")
            publish(
                "language", sections(everything), everything, self.out, ["relearning.png", "shares.png", "page.html"]
            )
        print(f"wrote to {self.out}: {', '.join(sorted(each.name for each in self.out.iterdir()))}")

    def compare(self, shares: Sequence[float], seeds: Sequence[int], settings: Settings, texts: Corpus) -> None:
        jobs = []
        for seed, row in product(seeds, [each for each in CONDITIONS if not self.only or each.name in self.only]):
            of_row = [*shares[: None if row in AT_EACH_SHARE else 1], *(LITTLE if row == BY_LABELS else ())]
            parts = [replace(settings, labeled=share) for share in of_row] if row.uses_labels else [settings]
            jobs += [Job(row, part, seed, self.out) for part in parts]
        runs = {job: the_same(job, settings, texts) for job in jobs}
        jobs = [job for job, run in runs.items() if not self.so_far or known(run, texts)]
        if not jobs:
            raise ExampleError("nothing of the table has been measured so far. Leave --so-far out.")
        found = [results(runs[job], texts) for job in jobs]
        everything: dict[str, Any] = {
            "settings": found[0]["identity"]["settings"],
            "seeds": sorted({job.seed for job in jobs}),
            "machine": {"cores": os.cpu_count(), "torch": torch.__version__},
            "rows": summarise(jobs, found),
        }
        record(everything, sections(everything), self.out)
        save(relearning(everything["rows"], RELEARNING, shares[0]), self.out / "relearning.png")
        save(by_share(everything["rows"]), self.out / "shares.png")
        print(f"\n{(self.out / 'table.md').read_text(encoding='utf-8')}")

    def demo(self, trainer: Trainer, texts: Corpus) -> None:
        """Before and after, for the eye; and the model that is left."""
        settings, whole = trainer.settings, trainer.model
        after = found(Job(ROUTED, settings, trainer.seed, self.out), texts)
        for each in (trainer, after):
            assert each.router is not None
            each.router.remove()
        forget(after.model, settings)
        left = smaller(after.model, settings)
        left.save_pretrained(self.out / "without-spanish")
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=texts.tokenizer, eos_token=END)  # type: ignore[no-untyped-call]
        tokenizer.save_pretrained(self.out / "without-spanish")
        models = {"before": whole, "after": left}
        shown = samples(models, texts.tokenizer, texts.test_verses, settings.context, trainer.seed)
        sizes = " and ".join(f"{sum(p.numel() for p in model.parameters()):,}" for model in models.values())
        sentence = f"One model before and after the block that Spanish was routed to is taken out: {sizes} parameters."
        write_text(self.out / "page.html", page(shown, list(models), sentence))
        print(f"{sentence}{terminal(shown, list(models), color=sys.stdout.isatty())}\n")
        if self.browser:
            webbrowser.open((self.out / "page.html").resolve().as_uri())


def trained(job: Job, texts: Corpus) -> Trainer:
    """The run, trained to its end."""
    trainer = found(job, texts)
    if trainer.steps < job.settings.steps:
        raise ExampleError(f"there is no finished {job.path}. Run `train` with the same flags first.")
    return trainer


def evaluated(trainer: Trainer, routed: dict[str, Any], twin: dict[str, Any]) -> dict[str, Any]:
    """What stands in metrics.json. Losses are in nats per byte of held-out chapters."""
    losses = ("es_loss_before", "es_loss_after", "en_loss_before", "en_loss_after")
    names = {0: "retain", 1: "forget", -1: "unlabeled"}
    return {
        **{key: routed[key] for key in losses},
        "en_loss_twin": twin["en_loss_after"],
        "es_loss_twin": twin["es_loss_after"],
        "relearning": dict(zip(map(str, RELEARNING), routed["relearning"], strict=True)),
        "tokens": {
            language: {
                name: int(((trainer.data.language == number) & (trainer.known == label)).sum())
                * trainer.settings.context
                for label, name in names.items()
            }
            for number, language in enumerate(LANGUAGES)
        },
        "bypasses": bypasses(trainer),
        "steps": trainer.steps,
        "cpu_seconds": {"routed": routed["cpu_seconds"], "twin": twin["cpu_seconds"]},
        **trainer.identity(),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    command = tyro.cli(Command, args=arguments, prog="python examples/language", description=DESCRIPTION)
    with told(interrupted="the same command goes on from the last saved step"):
        command.run()
