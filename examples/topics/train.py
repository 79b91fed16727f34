"""Training: all topics in one pass, by route; or without those that are left out."""

from contextlib import nullcontext

import torch
from torch import Tensor

import gradroute as gr
from common.gpt2 import TextTraining
from topics.config import TOPICS, Condition, Settings
from topics.model import sites
from topics.text import Sequences, detected, known_topics


class Trainer(TextTraining[Condition, Settings]):
    """Trains a model under a condition.

    All conditions of a seed start from the same weights, and draw the same batches; some leave sequences out.

    Args:
        condition: What sets the run apart.
        settings: Of all runs.
        data: To train on.
        vocabulary: Number of tokens that there are.
        seed: Of weights, batches and labels.
    """

    def __init__(self, condition: Condition, settings: Settings, data: Sequences, vocabulary: int, seed: int) -> None:
        super().__init__(condition, settings, len(data.tokens), vocabulary, seed)
        self.data, self.known = data, known_topics(data.topic, settings, seed)
        told = data.topic if condition.told_by == "truth" else self.known
        if condition.told_by == "detector":
            told = torch.where(self.known == gr.UNLABELED, detected(data, self.known), self.known)
        self._out = torch.isin(told, torch.tensor([TOPICS.index(topic) for topic in condition.without]))
        self.router = None
        if condition.routed:
            self.router = gr.Router(self.model, sites(self.model, settings, rest=condition.rest))

    def left_out(self, rows: Tensor) -> Tensor:
        return self._out[rows]

    def learn(self, rows: Tensor) -> None:
        if not len(rows):
            return
        tokens = self.data.tokens[rows]
        with nullcontext() if self.router is None else self.router(self.known[rows]):
            self.loss(tokens[:, :-1], tokens[:, 1:]).backward()  # type: ignore[no-untyped-call]
