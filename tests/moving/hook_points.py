"""A tiny transformer whose hook points have the names and shapes of TransformerLens', and edits of what goes through them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

WORDS, WIDTH, HEADS, HEAD_SIZE, NEURONS, LAYERS = 11, 6, 3, 2, 8, 3
#: The shape of what goes through a hook point, without batch and time.
SHAPES = {
    "hook_resid_post": (WIDTH,),
    "mlp.hook_post": (NEURONS,),
    "hook_mlp_out": (WIDTH,),
    "attn.hook_z": (HEADS, HEAD_SIZE),
}


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.o = nn.Linear(WIDTH, 3 * HEADS * HEAD_SIZE), nn.Linear(HEADS * HEAD_SIZE, WIDTH)
        self.hook_z = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            self.qkv(x).unflatten(-1, (3, HEADS, HEAD_SIZE)).transpose(1, 3).unbind(2)
        )  # [batch, heads, time, size]
        z = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.o(self.hook_z(z.transpose(1, 2)).flatten(2))


class Mlp(nn.Module):
    def __init__(self, neurons: int = NEURONS) -> None:
        super().__init__()
        self.up, self.down, self.hook_post = nn.Linear(WIDTH, neurons), nn.Linear(neurons, WIDTH), nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.hook_post(nn.functional.gelu(self.up(x))))


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attn, self.mlp = Attention(), Mlp()
        self.hook_mlp_out, self.hook_resid_post = nn.Identity(), nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(x)
        return self.hook_resid_post(x + self.hook_mlp_out(self.mlp(x)))


class Transformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.unembed = nn.Embedding(WORDS, WIDTH), nn.Linear(WIDTH, WORDS)
        self.blocks = nn.ModuleList(Block() for _ in range(LAYERS))

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        for block in self.blocks:
            x = block(x)
        return self.unembed(x)


@contextlib.contextmanager
def edited(model: nn.Module, edits: dict[str, Callable[[Tensor], Tensor]]) -> Iterator[None]:
    """While in the block, what the named modules return goes through these functions."""
    handles = [
        model.get_submodule(name).register_forward_hook(lambda module, args, output, edit=edit: edit(output))
        for name, edit in edits.items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def with_gradient_times(value: Tensor, mask: Tensor) -> Tensor:
    """The detach formula: the value, with its gradient times the mask."""
    return mask * value + (1 - mask) * value.detach()


def learned(model: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    """The gradient of each parameter."""
    gradients = torch.autograd.grad(loss, list(model.parameters()), materialize_grads=True)
    return dict(zip((name for name, _ in model.named_parameters()), gradients, strict=True))
