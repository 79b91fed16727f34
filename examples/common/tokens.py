"""Text as sequences of tokens."""

from collections.abc import Iterable

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor

END = "<|endoftext|>"  #: Stands after each text.


def byte_pairs(texts: Iterable[str], vocabulary: int) -> Tokenizer:
    """A byte-level BPE, trained on texts."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[END],
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def n_bytes(tokenizer: Tokenizer) -> Tensor:
    """Of each token, int64 [vocabulary]: in a byte-level vocabulary a character stands for a byte."""
    tokens = (str(tokenizer.id_to_token(i)) for i in range(tokenizer.get_vocab_size()))
    return torch.tensor([1 if token == END else len(token) for token in tokens])


def cut(tokenizer: Tokenizer, texts: Iterable[str], context: int) -> Tensor:
    """Texts one after the other as sequences, int64 [N, context + 1].

    The last token of each is the first of the next, so that each token is predicted once.
    """
    ids = torch.tensor([i for text in texts for i in tokenizer.encode(text).ids])
    return ids.unfold(0, context + 1, context).clone()
