"""`RoutedTrainer`: transformers' `Trainer`, with backward inside of the block."""

from __future__ import annotations

from ..errors import missing_package

try:
    from transformers import Trainer
except ImportError as error:
    # Its own extra brings accelerate, without which a Trainer cannot be made.
    raise ImportError(missing_package("trainers of transformers", "transformers[torch]", "transformers")) from error

from ._mixin import RoutedTrainerMixin

__all__ = ["RoutedTrainer"]


class RoutedTrainer(RoutedTrainerMixin, Trainer):  # type: ignore[misc, unused-ignore]
    """transformers' `Trainer`, whose training steps run inside of ``with router(labels)``.

    Its model is the plain one, and so are its checkpoints: `from_pretrained` loads them where there is no gradroute.
    Arguments, and what is routed how, are those of `RoutedTrainerMixin`; all others are the `Trainer`'s own.

    Examples:
        >>> import tempfile, torch, gradroute as gr
        >>> from transformers import GPT2Config, GPT2LMHeadModel, TrainingArguments
        >>> gpt2 = GPT2LMHeadModel(GPT2Config(n_embd=8, n_layer=1, n_head=2, vocab_size=9, n_positions=4))
        >>> tokens = torch.randint(0, 9, (4, 4))
        >>> trainer = RoutedTrainer(
        ...     model=gpt2,
        ...     sites={"transformer.h.*.mlp": gr.RoutingSpec.split({"retain": 6, "forget": 2})},
        ...     args=TrainingArguments(tempfile.mkdtemp(), max_steps=1, use_cpu=True, report_to=[], disable_tqdm=True),
        ...     train_dataset=[{"input_ids": row, "labels": row, "route_labels": "forget"} for row in tokens],
        ... )
        >>> trainer.router.sites.keys()
        dict_keys(['transformer.h.0.mlp'])
    """
