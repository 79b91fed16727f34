"""The command line: ``python examples/mnist_vae [COMMAND] [flags]``; see `Command` for the commands."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import torch
import tyro
from tyro.conf import Positional, arg, subcommand

from common import datasets
from common.datasets import DatasetName
from common.errors import ExampleError, told
from common.figures import save
from common.sources import default_root
from mnist_vae.config import RECIPES, Config, RecipeName, Unlabeled
from mnist_vae.evaluate import evaluate
from mnist_vae.run import Run
from mnist_vae.study import curves
from mnist_vae.study.animation import save_training
from mnist_vae.study.compare import chosen, compare, controls, legend, markdown, read, summaries, write
from mnist_vae.study.publish import draw_original, publish
from mnist_vae.study.report import report, table
from mnist_vae.study.tradeoff import tradeoff
from mnist_vae.train import train

DESCRIPTION = """A variational autoencoder with one latent dimension per digit, made so by gradient routing alone.

Without a sub-command: train, evaluate and report, with the flags of `all`
(see `all --help`). A run that is finished already is not trained again.
"""

Out = Annotated[Path, arg(help="The run's folder.")]
Threads = Annotated[int, arg(help="CPU threads. Weights are bit-identical only for the same number.")]
Data = Annotated[Path, arg(help="Where data sets are kept, in torchvision's layout, and fetched to.")]


@dataclass(frozen=True)
class Train:
    """Train a model; an interrupted run goes on from its last complete epoch."""

    recipe: Annotated[RecipeName, arg(help="Model, loss and schedule.")] = "default"
    dataset: DatasetName = "mnist"
    seed: int = 0
    epochs: Annotated[int | None, arg(help="Passes over the training set; by default the recipe's own number.")] = None
    routing: Annotated[bool, arg(help="Whether to route gradients by label; without it, a plain VAE.")] = True
    label_fraction: Annotated[float, arg(help="Part of the training images whose label routes.")] = 1.0
    unlabeled: Annotated[
        Unlabeled, arg(help="What the others teach: all units, none, or the digit of which their code speaks loudest.")
    ] = "all"
    labeled_epochs: Annotated[int, arg(help="Epochs at the start that see labeled images only.")] = 0
    units: Annotated[int | None, arg(help="Latent units per digit (recipe wide).")] = None
    shared: Annotated[int | None, arg(help="Latent units that all digits share (recipe wide).")] = None
    kl_weight: Annotated[float | None, arg(help="Weight of the KL; of style units only, in recipe wide.")] = None
    presence_kl_weight: Annotated[float | None, arg(help="Weight of the presence units' KL (recipe wide).")] = None
    fresh: Annotated[bool, arg(help="Delete what the folder holds of a run, and train from the start.")] = False
    out: Out = Path("runs/mnist_vae")
    data: Data = field(default_factory=default_root)
    threads: Threads = 2

    def config(self) -> Config:
        epochs = RECIPES[self.recipe].epochs if self.epochs is None else self.epochs
        return Config(
            self.dataset,
            self.recipe,
            self.routing,
            self.seed,
            epochs,
            label_fraction=self.label_fraction,
            unlabeled=self.unlabeled,
            labeled_epochs=self.labeled_epochs,
            units=self.units,
            shared=self.shared,
            kl_weight=self.kl_weight,
            presence_kl_weight=self.presence_kl_weight,
        )

    def run(self) -> None:
        config, run = self.config(), Run(self.out)
        train(config, datasets.load(config.dataset, self.data).train, run, fresh=self.fresh)


@dataclass(frozen=True)
class Evaluate:
    """Write metrics.json and the figures of a trained run; what was trained is read from its folder."""

    out: Out = Path("runs/mnist_vae")
    data: Data = field(default_factory=default_root)
    threads: Threads = 2

    def run(self) -> None:
        run = Run(self.out)
        evaluate(run, datasets.load(run.load_config().dataset, self.data))


@dataclass(frozen=True)
class Report:
    """Print what was found in an evaluated run, and its files."""

    out: Out = Path("runs/mnist_vae")

    def run(self) -> None:
        print(report(Run(self.out)))


@dataclass(frozen=True)
class Table:
    """Print evaluated runs as a table in Markdown, one row each."""

    runs: Annotated[tuple[Path, ...], Positional, arg(help="Folders of runs.")]

    def run(self) -> None:
        if not self.runs:
            raise ExampleError("`table` needs the folders of the runs to show: table runs/a runs/b")
        print(table([Run(folder) for folder in self.runs]))


@dataclass(frozen=True)
class Compare:
    """Train and evaluate the controls that are not in the folder yet, and print all that are as one table."""

    recipe: Annotated[RecipeName, arg(help="Of all rows but the original's.")] = "quick"
    dataset: DatasetName = "mnist"
    seeds: tuple[int, ...] = (0, 1, 2)
    epochs: Annotated[int | None, arg(help="Of all rows but the original's; by default the recipe's own.")] = None
    original_epochs: Annotated[int, arg(help="Of the original's row, which takes by far the longest.")] = RECIPES[
        "original"
    ].epochs
    only: Annotated[tuple[str, ...], arg(help="Names of the rows to train; by default all.")] = ()
    out: Annotated[Path | None, arg(help="By default runs/compare, and runs/compare-DATASET for another.")] = None
    data: Data = field(default_factory=default_root)
    threads: Threads = 2

    def run(self) -> None:
        rows = controls(self.dataset, self.recipe, self.epochs, self.original_epochs)
        suffix = "" if self.dataset == "mnist" else f"-{self.dataset}"
        folder = Path(f"runs/compare{suffix}") if self.out is None else self.out
        compare(chosen(rows, self.only), self.seeds, datasets.load(self.dataset, self.data), folder)
        summary, title = summaries(rows, folder), f"{self.dataset}, recipe {self.recipe}"
        write(summary, title, folder)
        found = read(rows, markdown(summary))
        save(curves.scatter(found, title), folder / "compare.png")
        save(curves.label_fractions(found, title), folder / "compare_labels.png")
        print(f"\n{legend(summary)}\n\n{markdown(summary)}")
        print(f"\ncompare: wrote compare.json, .md and two figures to {folder}")


@dataclass(frozen=True)
class Tradeoff:
    """Train and evaluate the recipe wide with more and fewer units, and print accuracy and reconstruction of each."""

    dataset: DatasetName = "mnist"
    seeds: tuple[int, ...] = (0,)
    epochs: int = 2
    only: Annotated[tuple[str, ...], arg(help="Names of the rows to train; by default all.")] = ()
    out: Annotated[Path, arg(help="A folder for the runs.")] = Path("runs/tradeoff")
    data: Data = field(default_factory=default_root)
    threads: Threads = 2

    def run(self) -> None:
        rows = tradeoff(self.dataset, self.epochs)
        compare(chosen(rows, self.only), self.seeds, datasets.load(self.dataset, self.data), self.out)
        summary, title = summaries(rows, self.out), f"{self.dataset}, epochs: {self.epochs}"
        write(summary, title, self.out)
        save(curves.lines(read(rows, markdown(summary)), title), self.out / "tradeoff.png")
        print(f"\n{legend(summary)}\n\n{markdown(summary)}")
        print(f"\ntradeoff: wrote compare.json, .md and a figure to {self.out}")


@dataclass(frozen=True)
class Publish:
    """Put rows and figures of these runs, and pictures of the models here, into the documentation (for maintainers)."""

    runs: Annotated[Path, arg(help="The folder that holds them.")] = Path("runs")
    data: Data = field(default_factory=default_root)
    threads: Threads = 2

    def run(self) -> None:
        from mnist_vae.page.demo import write_pictures  # noqa: PLC0415

        dataset = datasets.load("mnist", self.data)
        publish(self.runs)
        draw_original(self.runs, dataset.test)
        write_pictures(dataset)


@dataclass(frozen=True)
class Export:
    """Write a run's ONNX files, its weights in half precision and their metrics, checked against PyTorch."""

    out: Out = Path("runs/mnist_vae")
    to: Annotated[Path | None, arg(help="Where to; by default the folder `export` in the run's.")] = None
    data: Data = field(default_factory=default_root)
    threads: Threads = 2

    def run(self) -> None:
        # Imported here, since the exporter takes seconds to load.
        from mnist_vae.page.export import export  # noqa: PLC0415

        run = Run(self.out)
        dataset = datasets.load(run.load_config().dataset, self.data)
        export(run, dataset, run.folder / "export" if self.to is None else self.to)


@dataclass(frozen=True)
class Pretrained:
    """Write the models that come with the example (seed 0), each trained unless its run is there (for maintainers)."""

    fresh: Annotated[bool, arg(help="Delete what the runs' folders hold, and train from the start.")] = False
    runs: Annotated[Path, arg(help="A folder for their runs.")] = Path("runs/pretrained")
    data: Data = field(default_factory=default_root)
    threads: Threads = 2

    def run(self) -> None:
        from mnist_vae.page.demo import write_pretrained  # noqa: PLC0415

        write_pretrained(self.runs, self.data, fresh=self.fresh)


@dataclass(frozen=True)
class Film:
    """Train the recipe quick, and its unrouted twin, and write a GIF of what each dimension draws meanwhile."""

    seed: int = 0
    epochs: int = RECIPES["quick"].epochs
    to: Annotated[Path, arg(help="The GIF.")] = Path("runs/training.gif")
    data: Data = field(default_factory=default_root)
    threads: Threads = 2

    def run(self) -> None:
        config = Config(recipe="quick", seed=self.seed, epochs=self.epochs)
        self.to.parent.mkdir(parents=True, exist_ok=True)
        save_training(config, datasets.load("mnist", self.data).train, self.to)
        print(f"film: wrote {self.to}, {self.to.stat().st_size / 1e6:.2f} MB")


@dataclass(frozen=True)
class Demo:
    """Build the page that runs a model in the browser, and serve it on this machine.

    The model is that of the run or, where there is none, those that come with the example.
    """

    out: Out = Path("runs/mnist_vae")
    pretrained: Annotated[bool, arg(help="Show the pretrained models even if there is a run.")] = False
    serve: Annotated[bool, arg(help="Serve the page; without it, only build it.")] = True
    browser: Annotated[bool, arg(help="Open a browser at it.")] = False
    port: Annotated[int, arg(help="Where on localhost; 0 for any free one.")] = 8000
    data: Data = field(default_factory=default_root)
    threads: Threads = 2

    def run(self) -> None:
        from mnist_vae.page.demo import make_page, show  # noqa: PLC0415

        folder = make_page(Run(self.out), self.data, pretrained=self.pretrained)
        show(folder, self.port, serving=self.serve, browser=self.browser)


@dataclass(frozen=True)
class All(Train):
    """Train, evaluate and report."""

    def run(self) -> None:
        config, run = self.config(), Run(self.out)
        dataset = datasets.load(config.dataset, self.data)
        train(config, dataset.train, run, fresh=self.fresh)
        evaluate(run, dataset)
        print(report(run))


Command = (
    Annotated[All, subcommand("all")]
    | Annotated[Train, subcommand("train")]
    | Annotated[Evaluate, subcommand("evaluate")]
    | Annotated[Report, subcommand("report")]
    | Annotated[Table, subcommand("table")]
    | Annotated[Compare, subcommand("compare")]
    | Annotated[Tradeoff, subcommand("tradeoff")]
    | Annotated[Publish, subcommand("publish")]
    | Annotated[Export, subcommand("export")]
    | Annotated[Pretrained, subcommand("pretrained")]
    | Annotated[Film, subcommand("film")]
    | Annotated[Demo, subcommand("demo")]
)


def main(arguments: Sequence[str] | None = None) -> None:
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    if not arguments or (arguments[0].startswith("-") and arguments[0] not in ("-h", "--help")):
        arguments = ["all", *arguments]
    command: Command = tyro.cli(
        Command,
        default=All(),
        args=arguments,
        prog="python examples/mnist_vae",
        description=DESCRIPTION,
    )
    with told(interrupted="the same command goes on from the last complete epoch"):
        threads = getattr(command, "threads", 1)  # some only read what others have computed
        if threads < 1:
            raise ExampleError(f"--threads must be at least 1; got {threads}.")
        torch.set_num_threads(threads)
        command.run()
