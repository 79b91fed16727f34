"""The filter that a practitioner would build: what speaks for Spanish, learned from what is labeled."""

import torch
from torch import Tensor

import gradroute as gr
from language.config import FORGET, RETAIN
from language.tokens import Sequences


def token_odds(data: Sequences, known: Tensor) -> Tensor:
    """How much each token speaks for "forget", [tokens that there are]: naive Bayes on the labeled sequences.

    The logarithm of how much more frequent it is where "forget" is the label than where "retain" is, with one more of
    each, so that no token is unheard of.
    """
    vocabulary = int(data.tokens.max()) + 1
    retain, forget = (
        torch.bincount(data.tokens[known == label].flatten(), minlength=vocabulary) + 1.0 for label in (RETAIN, FORGET)
    )
    return (forget / forget.sum()).log() - (retain / retain.sum()).log()


def detected(data: Sequences, known: Tensor) -> Tensor:
    """The labels, with "forget" for those unlabeled sequences, too, whose tokens together speak for it."""
    suspect = token_odds(data, known)[data.tokens].sum(1) > 0
    return torch.where((known == gr.UNLABELED) & suspect, FORGET, known)
