"""One run: build and expand, train by route, ablate, measure, relearn."""

import os
import time
from dataclasses import asdict
from typing import Any

import torch
from torch import Generator, nn

from mnist_unlearning.config import Condition, Settings
from mnist_unlearning.detect import detected
from mnist_unlearning.images import Parts, take
from mnist_unlearning.labels import known_labels
from mnist_unlearning.measure import measures, probe
from mnist_unlearning.model import OUTPUT, attach, build, remove_block
from mnist_unlearning.relearn import relearning_curve
from mnist_unlearning.train import Trainer


def run(condition: Condition, settings: Settings, data: Parts, seed: int) -> dict[str, Any]:
    """Train and measure a model; what is found, JSON-safe."""
    started, cpu = time.perf_counter(), time.process_time()
    count = len(data.train) if settings.train_images is None else min(settings.train_images, len(data.train))
    split = take(data.train, torch.arange(count))
    known = known_labels(split.labels, settings.digit, condition, seed)
    if condition.filtered == "detected":
        known = detected(split, known, settings, seed)
    model = build(settings, seed)
    router = attach(model, settings, condition)
    steps = settings.epochs * max(1, count // settings.batch_size)
    Trainer(model, router, split, known, settings=settings, condition=condition, seed=seed).train(steps)
    router.remove()
    whole = _measured(model, data, settings)
    forget(model, settings, condition)
    after = _measured(model, data, settings)
    # In every row, so that all relearn with the same number of fresh units.
    remove_block(model, settings, fresh=Generator().manual_seed(seed))
    return {
        **identity(condition, settings, data.judged_on, seed),
        "whole": whole,
        "after": after,
        "relearning": relearning_curve(model, data, settings, seed),
        "seconds": time.perf_counter() - started,
        "cpu_seconds": time.process_time() - cpu,
        "load_average": os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan"),
    }


def identity(condition: Condition, settings: Settings, judged_on: str, seed: int) -> dict[str, Any]:
    """What a run's results depend on, apart from the code, the images and the machine."""
    return {
        "condition": {key: value for key, value in asdict(condition).items() if key != "what"},
        "settings": {**asdict(settings), "checkpoints": list(settings.checkpoints)},
        "judged_on": judged_on,
        "seed": seed,
    }


def _measured(model: nn.Sequential, data: Parts, settings: Settings) -> dict[str, float]:
    found = measures(model, data.judge, settings.digit)
    return {**found, "probe": probe(model, data, settings.digit, settings.relearn_images)}


@torch.no_grad()
def forget(model: nn.Module, settings: Settings, condition: Condition) -> None:
    """Take the ability out of the weights, in the way of the condition."""
    if condition.forgets_by == "block":
        remove_block(model, settings)
    elif condition.forgets_by == "row":
        model.get_submodule(OUTPUT).get_parameter("weight")[settings.digit] = 0
