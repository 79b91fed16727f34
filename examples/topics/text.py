"""Sequences of tokens on five topics, of which some are labeled."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from tokenizers import Tokenizer
from torch import Generator, Tensor

import gradroute as gr
from common.tokens import END, byte_pairs, cut, n_bytes
from common.verses import Verse, hold_out
from common.wordnet import Gloss
from topics.config import CORE, FILES, LANGUAGES, TOPICS, Settings


@dataclass(frozen=True)
class Sequences:
    """Tokens, int64 [N, context + 1], and the topic of each sequence, int64 [N]."""

    tokens: Tensor
    topic: Tensor

    def of(self, topic: str) -> Tensor:
        return self.tokens[self.topic == TOPICS.index(topic)]


@dataclass(frozen=True)
class Corpus:
    tokenizer: Tokenizer
    train: Sequences
    test: Sequences

    @property
    def n_bytes(self) -> Tensor:
        """Of each token."""
        return n_bytes(self.tokenizer)


def corpus(glosses: Sequence[Gloss], verses: Sequence[Verse], settings: Settings) -> Corpus:
    """Texts as sequences, as many of each topic as there are of the others, if there are: spread over its texts."""
    kept, held = hold_out(verses, settings.held_out)
    train, test = _of_verses(kept), _of_verses(held)
    file_topics = {file: topic for topic, files in FILES.items() for file in files}
    for topic in (CORE, *FILES):
        texts = [gloss.text + END for gloss in glosses if file_topics.get(gloss.file, CORE) == topic]
        test[topic] = texts[settings.held_out - 1 :: settings.held_out]
        del texts[settings.held_out - 1 :: settings.held_out]
        train[topic] = texts
    tokenizer = byte_pairs((text for topic in TOPICS for text in train[topic]), settings.vocabulary)
    return Corpus(
        tokenizer,
        _sequences(tokenizer, train, settings.context, settings.per_topic),
        _sequences(tokenizer, test, settings.context, settings.test_sequences),
    )


def known_topics(topic: Tensor, settings: Settings, seed: int) -> Tensor:
    """The labels of sequences, int64 [N]: a topic, and `UNLABELED` of those that nobody labeled, drawn by lot."""
    generator = Generator().manual_seed(seed + 1_000_000_007)
    known = torch.full_like(topic, gr.UNLABELED)
    for number in range(len(TOPICS)):
        these = (topic == number).nonzero().flatten()
        order = torch.randperm(len(these), generator=generator)
        known[these[order[: round(settings.labeled * len(these))]]] = number
    return known


def detected(data: Sequences, known: Tensor) -> Tensor:
    """What naive Bayes, trained on the labeled sequences, takes each one for, int64 [N]."""
    vocabulary = int(data.tokens.max()) + 1
    counts = torch.stack(
        [torch.bincount(data.tokens[known == n].flatten(), minlength=vocabulary) for n in range(len(TOPICS))]
    )
    odds = ((counts + 1) / (counts + 1).sum(1, keepdim=True)).log()
    return odds[:, data.tokens].sum(2).argmax(0)


def _of_verses(verses: Sequence[Verse]) -> dict[str, list[str]]:
    """By language: a text for each chapter."""
    chapters = [list(chapter) for _, chapter in groupby(verses, key=lambda verse: verse.chapter)]
    return {
        language: ["\n".join(verse.texts[language] for verse in chapter) + END for chapter in chapters]
        for language in LANGUAGES
    }


def _sequences(tokenizer: Tokenizer, texts: dict[str, list[str]], context: int, most: int) -> Sequences:
    parts = [_spread(cut(tokenizer, texts[topic], context), most) for topic in TOPICS]
    return Sequences(torch.cat(parts), torch.repeat_interleave(torch.tensor([len(part) for part in parts])))


def _spread(rows: Tensor, most: int) -> Tensor:
    """At most so many rows, at even distances."""
    return rows[torch.linspace(0, len(rows) - 1, min(most, len(rows))).round().long()]
