"""Training that can be interrupted: what an epoch does follows from its number, the seed and the weights before it."""

import math
import pickle
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Generator
from tqdm import tqdm  # type: ignore[import-untyped]

import gradroute as gr
from common.augment import random_affine
from common.datasets import Split
from common.errors import ExampleError
from common.files import read_json, replacing, write_json
from mnist_vae.config import Config, Recipe
from mnist_vae.labels import routing_labels
from mnist_vae.model import build_model
from mnist_vae.run import Run

#: Steps that make one point of the loss curves.
WINDOW = 20


def train(config: Config, data: Split, run: Run, *, fresh: bool = False) -> None:
    """Train to the end and save the weights; go on where an earlier call with this config was interrupted.

    A finished run is left as it is. A run with another config is replaced, and so is any run with ``fresh=True``.
    """
    _prepare(config, run, fresh)
    if run.weights.is_file():
        print(f"train: {run.weights} is trained with this config already; --fresh trains it anew")
        return
    trainer = Trainer(config, data)
    if run.checkpoint.is_file():
        trainer.load(run.checkpoint)
        print(f"train: going on after epoch {trainer.epoch} of {config.epochs}, from {run.checkpoint}")
    steps = trainer.steps_per_epoch
    # The bar shows on a terminal only; the line per epoch shows in a log, too.
    with tqdm(total=steps * config.epochs, initial=steps * trainer.epoch, unit="step", disable=None) as bar:
        while trainer.epoch < config.epochs:
            trainer.train_epoch(bar)
            trainer.save(run.checkpoint)
    history = {"train_seconds": trainer.seconds, "threads": torch.get_num_threads(), "window": WINDOW}
    write_json(run.history, {**history, "points": trainer.points})
    run.save_weights(trainer.model)
    run.checkpoint.unlink()
    print(f"train: {trainer.seconds:.0f} s of training; wrote {run.weights}")


class Trainer:
    """Model, optimizer and what has been seen of the losses, after a whole number of epochs."""

    def __init__(self, config: Config, data: Split) -> None:
        self.config = config
        self.recipe = config.settings()
        self.data = Split(data.images, routing_labels(data.labels, config))
        self.model = build_model(config)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=self.recipe.learning_rate, fused=True)
        self.batch_size = min(self.recipe.batch_size, len(data))
        self.steps_per_epoch = len(data) // self.batch_size
        self.epoch = 0
        self.seconds = 0.0
        #: Of each window of steps: images seen, loss, reconstruction, KL.
        self.points: list[list[float]] = []
        #: Called after each step, with its number.
        self.watch: Callable[[int], None] = lambda step: None

    def train_epoch(self, bar: tqdm) -> None:
        started = time.perf_counter()
        # A generator of its own for each epoch: to resume needs no saved random state.
        generator = torch.Generator().manual_seed(self.config.seed * 1_000_003 + self.epoch)
        self.model.train()
        last_routed = self.config.epochs if self.config.routed_epochs is None else self.config.routed_epochs
        self.model.routing = self.config.routing and self.epoch < last_routed
        window: list[list[float]] = []
        bar.set_description(f"epoch {self.epoch + 1}/{self.config.epochs}")
        order = torch.randperm(len(self.data), generator=generator)
        if self.epoch < self.config.labeled_epochs:
            labeled = (self.data.labels != gr.UNLABELED).nonzero().flatten()
            if len(labeled) == 0:
                raise ExampleError("--labeled-epochs needs a label: --label-fraction leaves none.")
            # As many steps as ever: what is left over of the permutation goes round the labeled images again.
            order = labeled[order % len(labeled)]
        # Whole batches only, since batch normalisation cannot take a rest of one image; the rest differs each epoch.
        for index, batch in enumerate(torch.split(order, self.batch_size)[: self.steps_per_epoch]):
            step = self.epoch * self.steps_per_epoch + index
            window.append(self._step(step, batch, generator))
            self.watch(step)
            bar.update()
            if len(window) == WINDOW or index + 1 == self.steps_per_epoch:
                total, reconstruction, kl = (sum(column) / len(window) for column in zip(*window, strict=True))
                self.points.append([(step + 1) * self.batch_size, total, reconstruction, kl])
                bar.set_postfix(loss=f"{total:.1f}", reconstruction=f"{reconstruction:.1f}", kl=f"{kl:.2f}")
                window = []
        self.epoch += 1
        self.seconds += time.perf_counter() - started
        bar.write(
            f"train: epoch {self.epoch}/{self.config.epochs}, loss {total:.1f}, reconstruction {reconstruction:.1f}, "
            f"KL {kl:.2f}, {self.seconds:.0f} s"
        )

    def _step(self, step: int, batch: torch.Tensor, generator: Generator) -> list[float]:
        images = self.data.images[batch].float() / 255
        if self.recipe.augment:
            images = random_affine(images, generator)
        losses = self.model.losses(images, self.data.labels[batch], generator)
        if not math.isfinite(losses.total.item()):
            raise ExampleError(f"the loss is {losses.total.item()} at step {step}. Lower the recipe's learning rate.")
        rate = learning_rate(self.recipe, step, self.steps_per_epoch, self.config.epochs)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad()
        losses.total.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        return [term.item() for term in losses]

    def save(self, path: Path) -> None:
        state = {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict(), "epoch": self.epoch}
        with replacing(path) as temporary:
            torch.save({**state, "seconds": self.seconds, "points": self.points}, temporary)

    def load(self, path: Path) -> None:
        try:
            state = torch.load(path, weights_only=True)
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.epoch, self.seconds, self.points = state["epoch"], state["seconds"], state["points"]
        except (RuntimeError, KeyError, EOFError, ValueError, pickle.UnpicklingError) as error:
            # Not the error's own text: torch's advises to load the file with its safety off.
            reason = type(error).__name__
            raise ExampleError(f"{path} cannot be resumed from ({reason}). Train anew with --fresh.") from error


def learning_rate(recipe: Recipe, step: int, steps_per_epoch: int, epochs: int) -> float:
    """The rate at a step: one cycle (Smith and Topin, 2018), or 5 % less with each epoch."""
    if recipe.schedule == "exponential":
        return recipe.learning_rate * 0.95 ** (step // steps_per_epoch)
    warmup, progress = 0.3, step / (steps_per_epoch * epochs)
    if progress < warmup:
        fraction = 0.04 + 0.96 * _ease(progress / warmup)
    else:
        fraction = 1 - _ease((progress - warmup) / (1 - warmup))
    return recipe.learning_rate * fraction


def _ease(x: float) -> float:
    """From 0 to 1 along half a cosine."""
    return 0.5 - 0.5 * math.cos(math.pi * x)


def _prepare(config: Config, run: Run, fresh: bool) -> None:
    if fresh or not run.config.is_file():
        run.clear()
    else:
        differences = config.differences(read_json(run.config))
        if differences:
            print(f"train: {run.folder} holds a run with another config, which this one replaces:")
            print("\n".join(f"  {difference}" for difference in differences))
            run.clear()
    write_json(run.config, config.to_dict())
