"""Training: each batch in one pass, in which some images teach the base, and the others the block."""

from collections.abc import Iterator
from contextlib import ExitStack

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

import gradroute as gr
from common.datasets import Split
from gradroute.optim import Isolation
from mnist_unlearning.config import Condition, Settings
from mnist_unlearning.images import pixels
from mnist_unlearning.labels import FORGET, RETAIN


class Trainer:
    """Trains a model under a condition.

    A batch of images labeled "retain", "forget" or nothing goes through the model like this:

    - A part of the images labeled "retain", drawn by lot, teaches the base, and meets the model without the block: its
      units are silent for them.
    - All others meet the whole model. Those labeled "forget" teach the block, and unlabeled ones base and block. What
      is left of those labeled "retain" teaches the block, too, which has to learn when to be silent.

    Where `Condition.retain` is "whole" the first part meets the whole model, too, and nothing else differs. Where it is
    "together" all images labeled "retain" teach base and block. Where the optimizer takes two steps for a batch, the
    two parts are passes of their own.

    Args:
        model: From `mnist_unlearning.model.build`.
        router: On that model.
        split: Images and digits.
        known: What is known of each image; see `mnist_unlearning.labels`.
    """

    def __init__(
        self,
        model: nn.Module,
        router: gr.Router,
        split: Split,
        known: Tensor,
        *,
        settings: Settings,
        condition: Condition,
        seed: int,
    ) -> None:
        if condition.filtered != "no":
            kept = (known == RETAIN) if condition.filtered == "unverified" else (known != FORGET)
            split, known = Split(split.images[kept], split.labels[kept]), known[kept]
        self.model, self.router, self.split = model, router, split
        self.known = known if condition.level != "none" else torch.full_like(known, gr.UNLABELED)
        self.settings, self.condition = settings, condition
        self.generator = Generator().manual_seed(seed)
        self.optimizer = torch.optim.Adam(model.parameters(), lr=settings.learning_rate, fused=True)

    def train(self, steps: int) -> None:
        """Take a number of batches; the same number in every condition, however many images it is left with."""
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            self.optimizer, self.settings.learning_rate, total_steps=steps, cycle_momentum=False
        )
        with ExitStack() as stack:
            if self.condition.optimizer == "isolated":
                stack.enter_context(Isolation(self.router, self.optimizer))
            for _, batch in zip(range(steps), self.batches(), strict=False):
                self.step(batch)
                schedule.step()

    def batches(self) -> Iterator[Tensor]:
        """Indices of images without end: of labeled ones at first, where the condition asks for it, then of all."""
        everything = torch.arange(len(self.known))
        labeled = (self.known != gr.UNLABELED).nonzero().flatten()
        if self.condition.labeled_first and len(labeled):
            yield from self._shuffled(labeled, self.settings.labeled_first)
        yield from self._shuffled(everything, None)

    def step(self, batch: Tensor) -> None:
        images, digits, known = pixels(self.split.images[batch]), self.split.labels[batch], self.known[batch]
        retain = known == RETAIN
        alone, route = torch.zeros_like(retain), torch.where(retain, gr.UNLABELED, known)
        if self.condition.retain != "together":
            drawn = torch.rand(len(batch), generator=self.generator) < self.settings.base_share
            alone, route = retain & drawn, torch.where(retain, FORGET, known)
        labels = torch.where(alone, RETAIN, route)
        everything = torch.ones_like(alone)
        for which in [everything] if self.condition.optimizer == "joint" else [alone, ~alone]:
            if not which.any():
                continue
            self.optimizer.zero_grad()
            with self.router(labels[which]):
                loss = F.cross_entropy(self.model(images[which]), digits[which], reduction="sum") / len(batch)
                loss.backward()  # type: ignore[no-untyped-call]
            self.optimizer.step()

    def _shuffled(self, index: Tensor, count: int | None) -> Iterator[Tensor]:
        """Batches of one shuffle after another; a last, incomplete one is left out."""
        size = min(self.settings.batch_size, len(index))
        yielded = 0
        while True:
            order = index[torch.randperm(len(index), generator=self.generator)]
            for batch in order[: len(order) // size * size].view(-1, size):
                if yielded == count:
                    return
                yielded += 1
                yield batch
