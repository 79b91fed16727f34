"""The command line: ``python examples/mnist_unlearning [flags]``."""

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

import torch
import tyro
from tyro.conf import arg

from common import datasets
from common.errors import ExampleError, told
from common.figures import save
from common.files import write_json, write_text
from common.sources import default_root
from mnist_unlearning.conditions import FRACTIONS, MAIN, chosen, conditions
from mnist_unlearning.config import Settings
from mnist_unlearning.experiment import finish
from mnist_unlearning.images import parts
from mnist_unlearning.measure import probe
from mnist_unlearning.publish import drawn, publish, redraw, titled
from mnist_unlearning.table import legend, markdown, summarise

DESCRIPTION = """Expand, route, ablate on MNIST: one digit's ability in a block of units that can be taken out.

Runs what is not in the folder yet, and prints all as one table. An interrupted
table goes on where it was.
"""

#: Of a table that takes half a minute.
QUICK = Settings(train_images=30_000, epochs=3, labeled_first=150)
QUICK_FRACTIONS = (1.0, 0.1)


@dataclass(frozen=True)
class Command:
    digit: Annotated[int, arg(help="The digit to forget.")] = 4
    seeds: Annotated[tuple[int, ...], arg(help="By default 0 to 4, and 0 with --quick.")] = ()
    quick: Annotated[bool, arg(help="Fewer images, epochs, rows and seeds: about half a minute.")] = False
    only: Annotated[tuple[str, ...], arg(help="Names of rows to run and show, with or without the fraction.")] = ()
    validation: Annotated[bool, arg(help="Measure on 5,000 held-out training images, to choose settings by.")] = False
    fresh: Annotated[
        bool, arg(help="Run again what is there, as after a change of the code, which the runs' files do not record.")
    ] = False
    docs: Annotated[bool, arg(help="Write the full table into README.md and the documentation, too.")] = False
    redraw: Annotated[bool, arg(help="Only write README and figures again, from the numbers in the documentation.")] = (
        False
    )
    out: Annotated[Path | None, arg(help="By default runs/mnist_unlearning, with the choices made here.")] = None
    data: Annotated[Path, arg(help="Where MNIST is kept, in torchvision's layout, and fetched to.")] = field(
        default_factory=default_root
    )
    workers: Annotated[int, arg(help="Processes, of one thread each. Results do not depend on it.")] = 2

    def settings(self) -> Settings:
        return replace(QUICK if self.quick else Settings(), digit=self.digit)

    def folder(self) -> Path:
        """One for each set of choices that the files of the runs do not name."""
        if self.out is not None:
            return self.out
        parts = [
            "mnist_unlearning",
            *(["quick"] if self.quick else []),
            *(["validation"] if self.validation else []),
            *([f"digit{self.digit}"] if self.digit != 4 else []),
        ]
        return Path("runs") / "-".join(parts)

    def run(self) -> None:
        started = time.perf_counter()
        rows = conditions(QUICK_FRACTIONS if self.quick else FRACTIONS)
        rows = chosen(rows, self.only or (MAIN if self.quick else ()))
        seeds = self.seeds or ((0,) if self.quick else (0, 1, 2, 3, 4))
        if self.workers < 1:
            raise ExampleError(f"--workers must be at least 1; got {self.workers}.")
        if min(seeds) < 0:
            raise ExampleError(f"--seeds must be at least 0; got {min(seeds)}.")
        if self.redraw:
            redraw()
            return
        if self.docs and (self.quick or self.only or self.validation):
            raise ExampleError("--docs publishes the full table: give it without --quick, --only and --validation.")
        settings, folder = self.settings(), self.folder()
        if folder.is_file():
            raise ExampleError(f"--out {folder} is a file; give a folder.")
        images = parts(datasets.load("mnist", self.data), validation=self.validation)
        results = finish(rows, seeds, settings, images, folder / "runs", workers=self.workers, fresh=self.fresh)
        summary = summarise(rows, seeds, results)
        seconds = time.perf_counter() - started
        about = {
            "digit": self.digit,
            "judged_on": images.judged_on,
            "quick": self.quick,
            "workers": self.workers,
            "machine": {"cores": os.cpu_count(), "torch": torch.__version__},
            "pixel_probe": probe(None, images, self.digit, settings.relearn_images),
        }
        everything = {**about, "rows": summary}
        write_json(folder / "results.json", everything)
        write_text(folder / "table.md", f"# {titled(everything)}\n\n{legend(summary)}\n\n{markdown(summary)}\n")
        for name, figure in drawn(everything).items():
            save(figure, folder / name)
        if self.docs:
            publish(everything, folder)
        print(f"\n{markdown(summary)}\n\n{seconds:.0f} s; results.json, table.md and the figures are in {folder}")


def main(arguments: Sequence[str] | None = None) -> None:
    command = tyro.cli(Command, args=arguments, prog="python examples/mnist_unlearning", description=DESCRIPTION)
    with told(interrupted="the same command goes on after the last finished run"):
        command.run()
