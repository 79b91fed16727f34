"""What a reader sees: held-out text of each topic, and what every choice of modules makes of it."""

from contextlib import nullcontext
from itertools import pairwise
from typing import Any

import torch

from common.gpt2 import token_losses
from common.tokens import END
from topics.config import TOPICS
from topics.measure import key, subsets
from topics.text import Corpus
from topics.train import Trainer

_EACH = 2  #: Sequences of each topic.


def samples(trainer: Trainer, texts: Corpus) -> dict[str, Any]:
    """Pieces of text, and the loss of each in hundredths of a nat, by what is taken out."""
    assert trainer.router is not None
    trainer.model.eval()  # type: ignore[no-untyped-call]
    shown = {topic: _middle(texts.test.of(topic)) for topic in TOPICS}
    tokens = torch.cat(list(shown.values()))
    losses = {}
    for subset in subsets():
        with trainer.router.ablated(*subset) if subset else nullcontext():
            losses[key(subset)] = (100 * token_losses(trainer.model, tokens)).round().int().tolist()
    rows = [(topic, row) for topic, of_topic in shown.items() for row in of_topic.tolist()]
    return {
        "topics": TOPICS,
        "texts": [{"topic": topic, "pieces": _pieces(row, texts)} for topic, row in rows],
        "losses": losses,
    }


def _middle(tokens: torch.Tensor) -> torch.Tensor:
    """A few sequences, spread over all."""
    return tokens[torch.linspace(0, len(tokens) - 1, _EACH + 2).round().long()[1:-1]]


def _pieces(tokens: list[int], texts: Corpus) -> list[str]:
    """What each token adds to the text; a character of several tokens comes with the last."""
    decoded = [texts.tokenizer.decode(tokens[: n + 1], skip_special_tokens=False) for n in range(len(tokens))]
    whole = [text.rstrip("\ufffd").replace(END, " ¶ ") for text in decoded]
    return [whole[0], *(after[len(before) :] for before, after in pairwise(whole))]
