"""A foreign model, and batches of what such models take: tokens, images, sound, series of numbers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

BATCH, LENGTH, VOCABULARY = 3, 5, 50
#: The two labels of a batch, mixed.
LABELS = torch.tensor([0, 1, 0])

Batch = dict[str, Tensor]


@dataclass(frozen=True)
class Foreign:
    """A model of another library, and how to make it and a batch for it."""

    name: str
    library: str
    model: Callable[[], nn.Module]
    batch: Callable[[], Batch]
    #: At most so many of its modules are sites, one of every class among them; all where it is None.
    most: int | None = None

    def make(self) -> tuple[nn.Module, Batch]:
        """The model with seeded weights, in double precision, and a seeded batch of keyword arguments."""
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = self.model().double().train()
            with torch.no_grad():
                for p in model.parameters():
                    if p.numel() and float(p.abs().max()) < 0.01:
                        # Layer scales, gates and biases that start at almost nothing would hide what is behind them.
                        p.normal_(std=0.3)
            return model, self.batch()


def numbers(name: str, *shape: int) -> Callable[[], Batch]:
    return lambda: {name: torch.randn(BATCH, *shape, dtype=torch.float64)}


def tokens(name: str = "input_ids") -> Batch:
    return {name: torch.randint(5, VOCABULARY - 1, (BATCH, LENGTH))}


def pairs() -> Batch:
    return tokens() | tokens("decoder_input_ids")


def pixels(size: int) -> Callable[[], Batch]:
    return numbers("pixel_values", 3, size, size)


def images(size: int, name: str = "x") -> Callable[[], Batch]:
    return numbers(name, 3, size, size)


def pixels_and_tokens() -> Batch:
    return tokens() | pixels(8)()


def spectrum_and_tokens(*shape: int) -> Callable[[], Batch]:
    return lambda: numbers("input_features", *shape)() | tokens("decoder_input_ids")
