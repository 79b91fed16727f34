"""What a model knows of each language: losses on held-out chapters, relearning, and words that it would go on with."""

from typing import Any

import torch
from torch import Generator, Tensor
from torch.nn import functional as F
from transformers import GPT2LMHeadModel

import gradroute as gr
from common.gpt2 import logits, loss_per_byte, relearned
from language.config import FORGET, RETAIN
from language.model import forget
from language.tokens import Corpus, Sequences
from language.train import Trainer

RELEARNING = (0, 5, 10, 20, 40)  #: Steps on Spanish after which the loss on it is measured.
_PROBED = 128  #: Sequences of each language.


def measured(trainer: Trainer, corpus: Corpus) -> dict[str, Any]:
    """Losses before and after taking the block out, where the condition has one, and while Spanish is relearned.

    The trainer's model has no block afterwards.
    """
    model, settings, n_bytes = trainer.model, trainer.settings, corpus.n_bytes

    def losses(when: str) -> dict[str, float]:
        short = {"en": RETAIN, "es": FORGET}
        return {
            f"{name}_loss_{when}": loss_per_byte(model, corpus.test.of(language), n_bytes)
            for name, language in short.items()
        }

    found = losses("before")
    if trainer.router is None:  # nothing to take out
        found |= {name.replace("before", "after"): loss for name, loss in found.items()}
    else:
        trainer.router.remove()
        forget(model, settings)
        found |= losses("after")
    return {**found, "probe": probe(model, corpus), "relearning": relearning(trainer, corpus)}


@torch.no_grad()
def probe(model: GPT2LMHeadModel, corpus: Corpus) -> float:
    """How often a linear probe of the last layer tells the language of a token of held-out chapters: in [0, 1].

    Ridge regression, in its closed form, on the first training sequences of both languages. Chance is 0.5.
    """
    model.eval()  # type: ignore[no-untyped-call]

    def states(data: Sequences) -> tuple[Tensor, Tensor]:
        parts = [data.of(language)[:_PROBED, :-1] for language in (RETAIN, FORGET)]
        hidden = model.transformer(input_ids=torch.cat(parts)).last_hidden_state.flatten(0, 1).double()
        sign = torch.cat([torch.full((part.numel(),), side) for part, side in zip(parts, (-1.0, 1.0), strict=True)])
        return torch.cat([hidden, torch.ones(len(hidden), 1)], 1), sign.double()

    x, sign = states(corpus.train)
    weight = torch.linalg.solve(x.T @ x + torch.eye(x.shape[1]), x.T @ sign)
    x, sign = states(corpus.test)
    return float(((x @ weight > 0) == (sign > 0)).double().mean())


def bypasses(trainer: Trainer) -> list[dict[str, Any]]:
    """What labels still train although their route leaves it out: an audit on two sequences of each label."""
    assert trainer.router is not None
    rows = torch.cat(
        [(trainer.known == label).nonzero().flatten()[:2] for label in sorted(set(trainer.known.tolist()))]
    )

    def step(tokens: Tensor) -> Tensor:
        return F.cross_entropy(logits(trainer.model, tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())

    report = gr.audit(trainer.router, step, trainer.data.tokens[rows], trainer.known[rows])
    return [{"label": each.label, "target": each.target, "kind": each.kind} for each in report.bypasses]


def relearning(trainer: Trainer, corpus: Corpus) -> list[float]:
    """The loss on Spanish per byte after each number of `RELEARNING` steps on Spanish.

    Every model gets a fresh block first, so that all relearn with as many units. What it relearns from is the end of
    the shuffle that it was trained on, which it has not met in less than one round.
    """
    model, settings, language = trainer.model, trainer.settings, corpus.train.language
    forget(model, settings, reinit=True, generator=Generator().manual_seed(trainer.seed))
    order = trainer.order(0).flip(0)
    rows = order[language[order] == FORGET]
    spanish = corpus.test.of(FORGET)
    return relearned(
        model, corpus.train.tokens[rows], RELEARNING, lambda: loss_per_byte(model, spanish, corpus.n_bytes)
    )


@torch.no_grad()
def continued(model: GPT2LMHeadModel, prompt: list[int], total: int, seed: int) -> list[int]:
    """A prompt and what the model goes on with, drawn by lot, `total` tokens in all."""
    model.eval()  # type: ignore[no-untyped-call]
    generator, tokens = Generator().manual_seed(seed), torch.tensor([prompt])
    while tokens.shape[1] < total:
        likely = (logits(model, tokens)[:, -1] / 0.7).softmax(-1)
        tokens = torch.cat([tokens, torch.multinomial(likely, 1, generator=generator)], dim=1)
    return [int(token) for token in tokens[0]]
