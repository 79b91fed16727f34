"""SGTM (arXiv:2512.05648) on a GPT-Neo of transformers, from its description: one mode for a whole batch.

In each block the last neurons and heads are the forget part. What "forget" closes gets its gradients set to zero after
backward; "retain" runs without the forget part; "default" is the plain model.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import torch
import transformers
from torch import Tensor, nn

WORDS, WIDTH, HEADS, NEURONS, LAYERS = 13, 8, 4, 12, 2
RETAIN_NEURONS, RETAIN_HEADS = 9, 3
RETAIN_FEATURES = RETAIN_HEADS * WIDTH // HEADS
#: What writes the neurons and the heads of a block, and what reads them.
NEURON_ROWS, NEURON_COLUMNS = ("mlp.c_fc.weight", "mlp.c_fc.bias"), "mlp.c_proj.weight"
HEAD_ROWS = tuple(f"attn.attention.{name}_proj.weight" for name in "qkv")
HEAD_COLUMNS = "attn.attention.out_proj.weight"
READERS_BIASES = ("mlp.c_proj.bias", "attn.attention.out_proj.bias")
EMBEDDINGS_AND_NORMS = ("wte.weight", "wpe.weight", "ln_1.weight", "ln_1.bias", "ln_2.weight", "ln_2.bias")


def gpt_neo(*, tied: bool = False) -> nn.Module:
    torch.manual_seed(0)
    config = transformers.GPTNeoConfig(
        vocab_size=WORDS,
        hidden_size=WIDTH,
        num_layers=LAYERS,
        attention_types=[[["global", "local"], LAYERS // 2]],
        num_heads=HEADS,
        max_position_embeddings=8,
        intermediate_size=NEURONS,
        tie_word_embeddings=tied,
        attn_implementation="eager",
    )
    model = transformers.GPTNeoForCausalLM(config).double().eval()  # no dropout
    for parameter in model.parameters():  # biases start at 0, where nothing can be seen of them
        nn.init.normal_(parameter, std=0.3)
    return model


def loss(model: nn.Module) -> Tensor:
    tokens = torch.randint(WORDS, (3, 6), generator=torch.Generator().manual_seed(0))
    return model(tokens, labels=tokens).loss


@contextlib.contextmanager
def without(model: nn.Module, neurons: slice, heads: slice, layers: Sequence[int] = range(LAYERS)) -> Iterator[None]:
    """Neurons and features of heads are zero on their way to what reads them, in these blocks."""

    def zeroed(units: slice) -> object:
        def hook(module: nn.Module, args: tuple[Tensor]) -> tuple[Tensor]:
            keep = torch.ones_like(args[0][0, 0])
            keep[units] = 0
            return (args[0] * keep,)

        return hook

    handles = []
    for layer in layers:
        block = model.transformer.h[layer]
        handles.append(block.mlp.c_proj.register_forward_pre_hook(zeroed(neurons)))
        handles.append(block.attn.attention.out_proj.register_forward_pre_hook(zeroed(heads)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def forget_part_off(model: nn.Module) -> contextlib.AbstractContextManager[None]:
    """The forward pass of mode "retain"."""
    return without(model, slice(RETAIN_NEURONS, None), slice(RETAIN_FEATURES, None))


def retain_part_off(model: nn.Module) -> contextlib.AbstractContextManager[None]:
    """The forward pass of mode "forget" with `masking_strategy="activation_masking"`."""
    return without(model, slice(RETAIN_NEURONS), slice(RETAIN_FEATURES))


def gradients(model: nn.Module, value: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    value.backward()
    return {name: torch.zeros_like(p) if p.grad is None else p.grad.clone() for name, p in model.named_parameters()}


def close_to_forget(
    gradients: dict[str, Tensor],
    *,
    columns: bool = True,
    embeddings: bool = False,
    layers: Sequence[int] = range(LAYERS),
) -> None:
    """Parameter masking after a "forget" batch, in place; `columns`: of the layers that read, with their biases, too."""
    for name, gradient in gradients.items():
        layer, inner = int(name.split(".")[2]) if ".h." in name else None, name.split(".", 3)[-1]
        if layer in layers:
            if inner in NEURON_ROWS:
                gradient[:RETAIN_NEURONS] = 0
            elif inner in HEAD_ROWS:
                gradient[:RETAIN_FEATURES] = 0
            elif columns and inner == NEURON_COLUMNS:
                gradient[:, :RETAIN_NEURONS] = 0
            elif columns and inner == HEAD_COLUMNS:
                gradient[:, :RETAIN_FEATURES] = 0
            elif columns and inner in READERS_BIASES:
                gradient.zero_()
        if embeddings and name.endswith(EMBEDDINGS_AND_NORMS):
            gradient.zero_()


def parts(model: nn.Module) -> dict[str, dict[str, tuple[slice, ...]]]:
    """Which entries of which parameters its optimizers hold: rows that write retain or forget units; all else is joint."""
    split: dict[str, dict[str, tuple[slice, ...]]] = {"retain": {}, "forget": {}, "joint": {}}
    for name, _ in model.named_parameters():
        inner = name.split(".", 3)[-1]
        size = RETAIN_NEURONS if inner in NEURON_ROWS else RETAIN_FEATURES if inner in HEAD_ROWS else None
        if size is None:
            split["joint"][name] = (slice(None),)
        else:
            split["retain"][name], split["forget"][name] = (slice(size),), (slice(size, None),)
    return split
