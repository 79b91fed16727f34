"""The command line: ``python examples/mnist_vae [all|train|evaluate|report] [flags]``."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import torch
import tyro
from tyro.conf import arg, subcommand

from mnist_vae import data
from mnist_vae.config import RECIPES, Config, DatasetName, RecipeName
from mnist_vae.errors import ExampleError
from mnist_vae.evaluate import evaluate
from mnist_vae.report import report
from mnist_vae.run import Run
from mnist_vae.sources import default_root
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
    fresh: Annotated[bool, arg(help="Delete what the folder holds of a run, and train from the start.")] = False
    out: Out = Path("runs/mnist_vae")
    data: Data = field(default_factory=default_root)
    threads: Threads = 2

    def config(self) -> Config:
        epochs = RECIPES[self.recipe].epochs if self.epochs is None else self.epochs
        return Config(self.dataset, self.recipe, self.routing, self.seed, epochs)

    def run(self) -> None:
        config, run = self.config(), Run(self.out)
        train(config, data.load(config.dataset, self.data).train, run, fresh=self.fresh)


@dataclass(frozen=True)
class Evaluate:
    """Write metrics.json and the figures of a trained run; what was trained is read from its folder."""

    out: Out = Path("runs/mnist_vae")
    data: Data = field(default_factory=default_root)
    threads: Threads = 2

    def run(self) -> None:
        run = Run(self.out)
        evaluate(run, data.load(run.load_config().dataset, self.data))


@dataclass(frozen=True)
class Report:
    """Print what was found in an evaluated run, and its files."""

    out: Out = Path("runs/mnist_vae")
    threads: Threads = 2

    def run(self) -> None:
        print(report(Run(self.out)))


@dataclass(frozen=True)
class All(Train):
    """Train, evaluate and report."""

    def run(self) -> None:
        config, run = self.config(), Run(self.out)
        dataset = data.load(config.dataset, self.data)
        train(config, dataset.train, run, fresh=self.fresh)
        evaluate(run, dataset)
        print(report(run))


Command = (
    Annotated[All, subcommand("all")]
    | Annotated[Train, subcommand("train")]
    | Annotated[Evaluate, subcommand("evaluate")]
    | Annotated[Report, subcommand("report")]
)


def main(arguments: Sequence[str] | None = None) -> None:
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    if not arguments or (arguments[0].startswith("-") and arguments[0] not in ("-h", "--help")):
        arguments = ["all", *arguments]
    command: All | Train | Evaluate | Report = tyro.cli(
        Command,
        default=All(),
        args=arguments,
        prog="python examples/mnist_vae",
        description=DESCRIPTION,
    )
    try:
        if command.threads < 1:
            raise ExampleError(f"--threads must be at least 1; got {command.threads}.")
        torch.set_num_threads(command.threads)
        command.run()
    except ExampleError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        print("interrupted: the same command goes on from the last complete epoch", file=sys.stderr)
        sys.exit(130)
