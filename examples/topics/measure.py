"""What is left of each topic, in whatever is taken out; and while it is learned again."""

from collections.abc import Iterator
from contextlib import nullcontext
from copy import deepcopy
from itertools import chain, combinations
from typing import Any

import torch
from torch import Generator
from transformers import GPT2LMHeadModel

import gradroute as gr
from common.gpt2 import example, loss_per_byte, relearned
from gradroute.surgery import ablate_
from topics.config import MODULES, TOPICS
from topics.model import sites
from topics.text import Corpus, detected
from topics.train import Trainer

RELEARNING = (0, 10, 40)  #: Steps on a topic after which the loss on it is measured.


def subsets() -> Iterator[tuple[str, ...]]:
    """All sets of modules, the empty one first."""
    return chain.from_iterable(combinations(MODULES, size) for size in range(len(MODULES) + 1))


def key(subset: tuple[str, ...]) -> str:
    """What a set of modules is called where keys are text; nothing for none."""
    return "+".join(subset)


def topic_losses(model: GPT2LMHeadModel, corpus: Corpus) -> dict[str, float]:
    """Nats per byte of held-out text, by topic."""
    return {topic: loss_per_byte(model, corpus.test.of(topic), corpus.n_bytes) for topic in TOPICS}


def measured(trainer: Trainer, corpus: Corpus) -> dict[str, Any]:
    """Losses by topic without each set of modules, or without what was filtered; and while what is gone is relearned.

    The trainer's model has no router afterwards.
    """
    condition, losses = trainer.condition, {}
    for subset in subsets() if condition.routed else [condition.without]:
        with trainer.router.ablated(*subset) if trainer.router is not None and subset else nullcontext():
            losses[key(subset)] = topic_losses(trainer.model, corpus)
    if trainer.router is not None:
        trainer.router.remove()
    gone = MODULES if not condition.without else condition.without if len(condition.without) == 1 else ()
    return {"losses": losses, "relearning": {topic: relearning(trainer, corpus, topic) for topic in gone}}


def relearning(trainer: Trainer, corpus: Corpus, topic: str) -> list[float]:
    """The loss on a topic after each number of `RELEARNING` steps on it, from the model without its module.

    Each model gets a fresh module first, also one that had none, so that all relearn with as many units. The sequences
    are those that all were trained on, but for the models that never saw the topic.
    """
    model = deepcopy(trainer.model)
    router = gr.Router(model, sites(model, trainer.settings, rest=False))
    ablate_(router, topic, example=example(model), reinit=True, generator=Generator().manual_seed(trainer.seed))
    router.remove()
    order = trainer.order(0)
    tokens = trainer.data.tokens[order[trainer.data.topic[order] == TOPICS.index(topic)]]
    test = corpus.test.of(topic)
    return relearned(model, tokens, RELEARNING, lambda: loss_per_byte(model, test, corpus.n_bytes))


def errors(trainer: Trainer) -> dict[str, dict[str, int]]:
    """Of each topic, how many sequences a detector that was trained on the labels misses, and takes others for it."""
    taken = torch.where(trainer.known == gr.UNLABELED, detected(trainer.data, trainer.known), trainer.known)
    true = trainer.data.topic
    return {
        topic: {
            "sequences": int((true == number).sum()),
            "missed": int(((true == number) & (taken != number)).sum()),
            "wrong": int(((true != number) & (taken == number)).sum()),
        }
        for number, topic in enumerate(TOPICS)
    }
