"""Sequences of tokens, of which some are labeled."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from tokenizers import Tokenizer
from torch import Generator, Tensor

import gradroute as gr
from common.tokens import END, byte_pairs, cut, n_bytes
from common.verses import Verse, hold_out
from language.config import FORGET, LANGUAGES, RETAIN, Condition, Settings


@dataclass(frozen=True)
class Sequences:
    """Tokens, int64 [N, context + 1], and the language of each sequence, int64 [N]."""

    tokens: Tensor
    language: Tensor

    def of(self, language: int) -> Tensor:
        return self.tokens[self.language == language]


@dataclass(frozen=True)
class Corpus:
    tokenizer: Tokenizer
    train: Sequences
    test: Sequences
    test_verses: list[Verse]

    @property
    def n_bytes(self) -> Tensor:
        """Of each token."""
        return n_bytes(self.tokenizer)


def corpus(verses: Sequence[Verse], settings: Settings) -> Corpus:
    """Verses as sequences: a tokenizer of all training text, and chapters one after the other, cut up."""
    train, test = hold_out(verses, settings.held_out)
    texts = (verse.texts[language] for verse in train for language in LANGUAGES)
    tokenizer = byte_pairs(texts, settings.vocabulary)
    train_sequences = _sequences(tokenizer, train, settings.context, None)
    return Corpus(
        tokenizer, train_sequences, _sequences(tokenizer, test, settings.context, settings.test_sequences), test
    )


def known_labels(language: Tensor, settings: Settings, condition: Condition, seed: int) -> Tensor:
    """What is known of each sequence, [N]: "retain" or "forget", and `UNLABELED` of most.

    The same in all conditions of a seed; and what is labeled where a smaller part is, is also where a larger one is.
    """
    generator = Generator().manual_seed(seed + 1_000_000_007)
    known = torch.full_like(language, gr.UNLABELED)
    for label, share in ((RETAIN, settings.english_labeled), (FORGET, settings.labeled)):
        these = (language == label).nonzero().flatten()
        order = torch.randperm(len(these), generator=generator)
        known[these[order[: round(share * len(these))]]] = label
    return known[torch.randperm(len(known), generator=generator)] if condition.labels == "random" else known


def _sequences(tokenizer: Tokenizer, verses: Sequence[Verse], context: int, most: int | None) -> Sequences:
    tokens, languages = [], []
    for number, language in enumerate(LANGUAGES):
        found = cut(tokenizer, _chapters(verses, language), context)[:most]
        tokens.append(found)
        languages.append(torch.full((len(found),), number))
    return Sequences(torch.cat(tokens), torch.cat(languages))


def _chapters(verses: Sequence[Verse], language: str) -> Iterable[str]:
    for _, chapter in groupby(verses, key=lambda verse: verse.chapter):
        yield "\n".join(verse.texts[language] for verse in chapter) + END
