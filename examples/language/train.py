"""Training: each batch in one pass, or in two, by route."""

from contextlib import ExitStack

import torch
from torch import Tensor

import gradroute as gr
from common.gpt2 import IGNORED, TextTraining
from language.config import FORGET, RETAIN, Condition, Settings
from language.detect import detected, token_odds
from language.model import sites
from language.tokens import Sequences, known_labels


class Trainer(TextTraining[Condition, Settings]):
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

    def __init__(self, condition: Condition, settings: Settings, data: Sequences, vocabulary: int, seed: int) -> None:
        super().__init__(condition, settings, len(data.tokens), vocabulary, seed)
        self.data, self.known = data, known_labels(data.language, settings, condition, seed)
        self.odds = token_odds(data, self.known)
        if condition.filtered == "detected":
            self.known = detected(data, self.known)
        self.router = None
        if condition.level != "none" or condition.passes == "trunk":
            self.router = gr.Router(self.model, sites(self.model, settings, condition))

    def left_out(self, rows: Tensor) -> Tensor:
        if self.condition.filtered == "all":
            return self.data.language[rows] == FORGET
        return (self.known[rows] == FORGET) & (self.condition.filtered != "no")

    def learn(self, rows: Tensor) -> None:
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
                self.loss(tokens[:, :-1], self.targets(rows[which])).backward()  # type: ignore[no-untyped-call]

    def labels(self, rows: Tensor) -> Tensor:
        """What the router is told of sequences, int64 [B]."""
        return torch.full_like(rows, gr.UNLABELED) if self.condition.level == "none" else self.known[rows]

    def targets(self, rows: Tensor) -> Tensor:
        """What sequences are to predict, int64 [B, context]; `IGNORED` where a token is to teach nothing."""
        tokens = self.data.tokens[rows, 1:]
        if self.condition.filtered != "tokens":
            return tokens
        return tokens.masked_fill((self.odds[tokens] > 0) & (self.known[rows] != RETAIN)[:, None], IGNORED)
