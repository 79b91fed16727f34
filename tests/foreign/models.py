"""Models that others wrote, tiny and with random weights, in the settings that they come with, and a batch for each.

They are in training mode, as made: with dropout, running statistics, and caches of keys and values.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

BATCH, LENGTH, WIDTH, VOCABULARY, IMAGE = 3, 5, 16, 50, 32
#: The two labels of a batch, mixed.
LABELS = torch.tensor([0, 1, 0])

Batch = dict[str, Tensor]


@dataclass(frozen=True)
class Foreign:
    """A model of another library, and how to make it and a batch for it."""

    name: str
    library: str
    model: Callable[[], nn.Module]
    batch: Callable[[], Batch]

    def make(self) -> tuple[nn.Module, Batch]:
        """The model with seeded weights, in double precision, and a seeded batch of keyword arguments."""
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return self.model().double().train(), self.batch()


def tokens(name: str = "input_ids") -> Batch:
    return {name: torch.randint(5, VOCABULARY - 1, (BATCH, LENGTH))}


def pairs() -> Batch:
    return tokens() | tokens("decoder_input_ids")


def pixels(size: int = IMAGE, name: str = "pixel_values") -> Batch:
    return {name: torch.randn(BATCH, 3, size, size, dtype=torch.float64)}


def patches() -> Batch:
    return pixels(8)


def images() -> Batch:
    return pixels(IMAGE, "x")


def images_of_64() -> Batch:
    return pixels(64, "x")


def images_and_tokens() -> Batch:
    return tokens() | patches()


def _of_transformers(model: str, config: str, **settings: Any) -> nn.Module:
    import transformers

    made = getattr(transformers, config)(**settings)
    return getattr(transformers, model)(made)


def _of_torchvision(maker: str, **settings: Any) -> nn.Module:
    module, _, name = maker.rpartition(".")
    return getattr(importlib.import_module(f"torchvision.models.{module}".rstrip(".")), name)(**settings)


#: What most configurations call it.
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "intermediate_size": 2 * WIDTH,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 32,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GROUPED = SIZES | {"num_key_value_heads": 1, "head_dim": 8}
EXPERTS = GROUPED | {"num_local_experts": 3, "num_experts": 3, "num_experts_per_tok": 2, "moe_intermediate_size": WIDTH}
OF_IMAGES = {
    name: SIZES[name] for name in ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
}
OF_IMAGES |= {"image_size": 8, "patch_size": 4}
T5_SIZES = {"vocab_size": VOCABULARY, "d_model": WIDTH, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2}
BART_SIZES = {
    "vocab_size": VOCABULARY, "d_model": WIDTH, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 2,
    "decoder_attention_heads": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "max_position_embeddings": 32,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 2, "forced_eos_token_id": 2,
}  # fmt: skip

#: The class of transformers, its configuration's class, the batch, and the sizes.
_TRANSFORMERS: list[tuple[str, str, Callable[[], Batch], dict[str, Any]]] = [
    ("GPT2LMHeadModel", "GPT2Config", tokens, SIZES | {"n_inner": 32}),
    ("GPTNeoXForCausalLM", "GPTNeoXConfig", tokens, SIZES),
    ("LlamaForCausalLM", "LlamaConfig", tokens, GROUPED),
    ("MistralForCausalLM", "MistralConfig", tokens, GROUPED),
    ("Qwen2ForCausalLM", "Qwen2Config", tokens, GROUPED),
    ("GemmaForCausalLM", "GemmaConfig", tokens, GROUPED),
    ("Gemma2ForCausalLM", "Gemma2Config", tokens, GROUPED),
    ("BertForMaskedLM", "BertConfig", tokens, SIZES),
    ("T5ForConditionalGeneration", "T5Config", pairs, T5_SIZES),
    ("ViTForImageClassification", "ViTConfig", patches, OF_IMAGES),
]  # fmt: skip

#: The maker in torchvision.models, the batch, and the settings.
_TORCHVISION: list[tuple[str, Callable[[], Batch], dict[str, Any]]] = [
    ("resnet18", images, {"num_classes": 7}),
    ("mobilenet_v3_small", images, {"num_classes": 7}),
    ("squeezenet1_1", images, {"num_classes": 7}),
]


def _all() -> dict[str, Foreign]:
    found = {}
    for model, config, batch, settings in _TRANSFORMERS:
        make = lambda model=model, config=config, settings=settings: _of_transformers(model, config, **settings)  # noqa: E731
        found[model] = Foreign(model, "transformers", make, batch)
    for maker, batch, settings in _TORCHVISION:
        make = lambda maker=maker, settings=settings: _of_torchvision(maker, **settings)  # noqa: E731
        found[maker.rpartition(".")[2]] = Foreign(maker.rpartition(".")[2], "torchvision", make, batch)
    return found


MODELS = _all()
