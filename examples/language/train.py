"""Training: each batch in one pass, or in two, by route."""

import math
import time
from contextlib import ExitStack
from typing import Any

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

import gradroute as gr
from common.resumable import Resumable
from language.config import FORGET, RETAIN, Condition, Settings
from language.detect import detected, token_odds
from language.model import build, logits, sites
from language.tokens import Sequences, known_labels

IGNORED = -100  #: In place of a token that is not to be predicted.


class Trainer(Resumable[Condition, Settings]):
    """Trains a model under a condition.

    All conditions of a seed start from the same weights, and draw the same batches; what is filtered is left out of the
    batches, so that a filtered model sees the English that the twin does, in the same steps.

    Args:
        condition: What sets the run apart.
        settings: Of all runs.
        data: To train on.
        vocabulary: Number of tokens that there are.
        seed: Of weights, batches and labels.
    """

    #: curve: after how many steps somebody measured what loss.
    counts = ("steps", "cpu_seconds", "curve")

    def __init__(self, condition: Condition, settings: Settings, data: Sequences, vocabulary: int, seed: int) -> None:
        self.condition, self.settings, self.data, self.seed = condition, settings, data, seed
        self.known = known_labels(data.language, settings, condition, seed)
        self.odds = token_odds(data, self.known)
        if condition.filtered == "detected":
            self.known = detected(data, self.known)
        self.model = build(settings, vocabulary, seed)
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.Adam(trained, settings.learning_rate, betas=(0.9, 0.98))
        self.router = None
        if condition.level != "none" or condition.passes == "trunk":
            self.router = gr.Router(self.model, sites(self.model, settings, condition))
        self.steps, self.cpu_seconds = 0, 0.0
        self.curve: list[tuple[int, float]] = []

    def train(self, steps: int) -> None:
        """Go on until so many steps have been taken in all."""
        started = time.process_time()
        self.model.train()
        while self.steps < steps:
            for group in self.optimizer.param_groups:
                group["lr"] = self.settings.learning_rate * self.rate(self.steps)
            self.step(self.batch(self.steps))
            self.steps += 1
        self.cpu_seconds += time.process_time() - started

    def rate(self, step: int) -> float:
        """The part of the learning rate: a warm-up, and a cosine down to a tenth."""
        warm_up, done = (step + 1) / self.settings.warm_up, step / self.settings.steps
        return min(1.0, warm_up) * (0.55 + 0.45 * math.cos(math.pi * done))

    def batch(self, step: int) -> Tensor:
        """Which sequences a step sees: one shuffle of all after the other, without what is filtered."""
        size = self.settings.batch_size
        epoch, place = divmod(step * size, len(self.known) // size * size)
        rows = self.order(epoch)[place : place + size]
        if self.condition.filtered == "all":
            return rows[self.data.language[rows] != FORGET]
        return rows if self.condition.filtered == "no" else rows[self.known[rows] != FORGET]

    def order(self, epoch: int) -> Tensor:
        """All sequences, shuffled."""
        return torch.randperm(len(self.known), generator=Generator().manual_seed(1000 * self.seed + epoch))

    def step(self, rows: Tensor) -> None:
        """One step of the optimizer."""
        self.optimizer.zero_grad()
        alone = self.known[rows] == RETAIN
        for which in [alone, ~alone] if self.condition.passes == "two" else [torch.ones_like(alone)]:
            if not which.any():
                continue
            tokens = self.data.tokens[rows[which]]
            with ExitStack() as stack:
                if self.router is not None:
                    if which is alone or self.condition.passes == "trunk":
                        stack.enter_context(self.router.ablated("forget"))
                    stack.enter_context(self.router(self.labels(rows[which])))
                found = logits(self.model, tokens[:, :-1])
                targets = self.targets(rows[which])
                loss = F.cross_entropy(found.flatten(0, 1), targets.flatten(), reduction="sum", ignore_index=IGNORED)
                # By the same number in every pass and condition: what a sequence teaches depends on no other.
                (loss / (self.settings.batch_size * self.settings.context)).backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()

    def labels(self, rows: Tensor) -> Tensor:
        """What the router is told of sequences, int64 [B]."""
        return torch.full_like(rows, gr.UNLABELED) if self.condition.level == "none" else self.known[rows]

    def targets(self, rows: Tensor) -> Tensor:
        """What sequences are to predict, int64 [B, context]; `IGNORED` where a token is to teach nothing."""
        tokens = self.data.tokens[rows, 1:]
        if self.condition.filtered != "tokens":
            return tokens
        return tokens.masked_fill((self.odds[tokens] > 0) & (self.known[rows] != RETAIN)[:, None], IGNORED)

    def parts(self) -> dict[str, Any]:
        return {"model": self.model, "optimizer": self.optimizer}
