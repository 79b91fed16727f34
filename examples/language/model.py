"""A small GPT-2 with a block of neurons and heads for what is to be taken out, and what is left without it."""

from dataclasses import replace
from typing import Any

from transformers import GPT2LMHeadModel

import gradroute as gr
from common.gpt2 import example, rest_sites
from gradroute.blocks import block_sites
from gradroute.surgery import ablate_, contract
from language.config import Condition, Settings


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
        found |= rest_sites(model, "retain", ["forget"])
    return found


def forget(model: GPT2LMHeadModel, settings: Settings, **arguments: Any) -> None:
    """Take the block out of the weights: zeros, or with ``reinit=True`` fresh ones."""
    router = gr.Router(model, sites(model, settings, Condition("", "", level="parameters", rest=False, passes="two")))
    ablate_(router, "forget", example=example(model), **arguments)
    router.remove()


def smaller(model: GPT2LMHeadModel, settings: Settings) -> GPT2LMHeadModel:
    """A plain GPT-2 without the block's neurons, of a model that forgot: a copy, which `from_pretrained` loads.

    The block's heads stay, as zeros: GPT-2's configuration has no place for fewer heads of the same size.
    """
    neurons = gr.RoutingSpec.split(
        {"retain": settings.neurons - settings.block_neurons, "forget": settings.block_neurons}
    )
    router = gr.Router(model, block_sites(model, mlp=neurons))
    small = contract(router, "forget", example=example(model)).model
    router.remove()
    assert isinstance(small, GPT2LMHeadModel)
    small.config.n_inner = neurons.width - settings.block_neurons
    return small
