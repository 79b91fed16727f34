"""A small GPT-2 with a block of neurons and heads for what is to be taken out, and what is left without it."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

import gradroute as gr
from gradroute.blocks import block_sites
from gradroute.surgery import ablate_, contract
from language.config import Condition, Settings

#: What belongs to no neuron and no head, and its width.
_REST = {"transformer.w[tp]e": "n_embd", "transformer.*ln_?": "n_embd", "lm_head": "vocab_size"}


def build(settings: Settings, vocabulary: int, seed: int) -> GPT2LMHeadModel:
    """GPT-2, without dropout, and with the biases left out that no unit owns."""
    config = GPT2Config(
        vocab_size=vocabulary,
        n_positions=settings.context,
        n_embd=settings.width,
        n_layer=settings.layers,
        n_head=settings.heads,
        n_inner=settings.neurons,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=0,
        eos_token_id=0,
        use_cache=False,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = GPT2LMHeadModel(config)
    # The biases behind neurons and heads add to the residual stream. They stay 0: all data would teach them.
    for name, parameter in model.named_parameters():
        if name.endswith("c_proj.bias"):
            parameter.requires_grad_(False)
    return model


def sites(model: GPT2LMHeadModel, settings: Settings, condition: Condition) -> dict[str, gr.Site]:
    """Spanish teaches the block and nothing else, English all but the block, and unlabeled data both."""
    silent = {"retain": "forget"} if condition.passes == "silent" else None
    neurons, heads = (
        gr.RoutingSpec.split({"retain": every - block, "forget": block}, silent=silent)
        for every, block in ((settings.neurons, settings.block_neurons), (settings.heads, settings.block_heads))
    )
    found = block_sites(model, mlp=neurons, heads=heads)
    if condition.level == "activations":
        found = {name: replace(site, level="activations") for name, site in found.items() if site.on == "output"}
    if condition.rest:
        for pattern, n in _REST.items():
            width = getattr(model.config, n)
            spec = gr.RoutingSpec({"retain": slice(width), "forget": []}, width)
            found[pattern] = gr.Site(spec, level="parameters")
    return found


def logits(model: GPT2LMHeadModel, tokens: Tensor) -> Tensor:
    """[B, T, vocabulary] for tokens [B, T]."""
    # By default positions have no batch dimension, and without it no label of an example could route what they teach.
    positions = torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens)
    out: Tensor = model(input_ids=tokens, position_ids=positions).logits
    return out


def forget(model: GPT2LMHeadModel, settings: Settings, **arguments: Any) -> None:
    """Take the block out of the weights: zeros, or with ``reinit=True`` fresh ones."""
    router = gr.Router(model, sites(model, settings, Condition("", "", level="parameters", rest=False, passes="two")))
    ablate_(router, "forget", example=_example(model), **arguments)
    router.remove()


def smaller(model: GPT2LMHeadModel, settings: Settings) -> GPT2LMHeadModel:
    """A plain GPT-2 without the block's neurons, of a model that forgot: a copy, which `from_pretrained` loads.

    The block's heads stay, as zeros: GPT-2's configuration has no place for fewer heads of the same size.
    """
    neurons = gr.RoutingSpec.split(
        {"retain": settings.neurons - settings.block_neurons, "forget": settings.block_neurons}
    )
    router = gr.Router(model, block_sites(model, mlp=neurons))
    small = contract(router, "forget", example=_example(model)).model
    router.remove()
    assert isinstance(small, GPT2LMHeadModel)
    small.config.n_inner = neurons.width - settings.block_neurons
    return small


def _example(model: GPT2LMHeadModel) -> dict[str, Tensor]:
    tokens = torch.arange(2 * model.config.n_positions) % model.config.vocab_size
    return {"input_ids": tokens.view(2, -1)}
