"""Training steps of a stack of GPT-2-small's blocks, with and without routing on every MLP."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

import gradroute as gr
from steps import UNROUTED, RoutedStep, TemporarilyRoutedStep, TrainStep

LAYERS, BATCH, TIME, WIDTH, HEADS = 4, 2, 256, 768, 12
#: What "on every MLP" may mean: its output, or its hidden units, of which there are four times as many.
SITES = {"output of every MLP": ("h.*.mlp", WIDTH), "hidden units of every MLP": ("h.*.mlp.c_fc", 4 * WIDTH)}


@dataclass
class Blocks:
    """The blocks with what they are trained on: noise, and a label for each of its tokens."""

    model: nn.Module
    inputs: Tensor
    target: Tensor
    labels: Tensor

    def step(self, *, compiled: bool) -> TrainStep:
        called = torch.compile(self.model, dynamic=False) if compiled else self.model

        def loss() -> Tensor:
            output: Tensor = called(inputs_embeds=self.inputs).last_hidden_state
            return (output * self.target).mean()

        return TrainStep(self.model, loss)


def gpt2_steps(device: torch.device, *, compiled: bool) -> dict[str, TrainStep]:
    """A step unrouted, and one for each of `SITES`.

    In eager mode all train the same model. Compiled code holds on to its hooks, so there each has its own.
    """
    blocks = build_blocks(device)
    steps = {UNROUTED: blocks.step(compiled=compiled)}
    for name, (pattern, width) in SITES.items():
        sites = {pattern: gr.RoutingSpec.split({"a": width // 2, "b": width // 2})}
        if compiled:
            blocks = build_blocks(device)
            steps[name] = RoutedStep(blocks.step(compiled=True), sites, blocks.labels)
        else:
            steps[name] = TemporarilyRoutedStep(steps[UNROUTED], sites, blocks.labels)
    return steps


def build_blocks(device: torch.device, *, layers: int = LAYERS, width: int = WIDTH) -> Blocks:
    from transformers import GPT2Config, GPT2Model  # noqa: PLC0415  # takes seconds to import

    torch.manual_seed(0)
    heads = HEADS * width // WIDTH or 1
    config = GPT2Config(n_layer=layers, n_embd=width, n_head=heads, n_positions=TIME, use_cache=False)
    config.vocab_size, config.bos_token_id, config.eos_token_id = 1, 0, 0  # inputs are embedded already
    config.resid_pdrop = config.embd_pdrop = config.attn_pdrop = 0.0
    model: nn.Module = GPT2Model(config)
    model.to(device)
    inputs, target = (torch.randn(BATCH, TIME, width, device=device) for _ in range(2))
    return Blocks(model, inputs, target, torch.randint(0, 2, (BATCH, TIME), device=device))
