"""A small GPT-2 with a module of neurons and heads for each topic."""

from transformers import GPT2LMHeadModel

import gradroute as gr
from common.gpt2 import rest_sites
from gradroute.blocks import block_sites
from topics.config import CORE, MODULES, Settings


def sites(model: GPT2LMHeadModel, settings: Settings, *, rest: bool) -> dict[str, gr.Site]:
    """A topic teaches its module and nothing else, the core's all but the modules, and unlabeled data everything.

    The modules of other topics are silent: off in the forward pass, for what is labeled. Embeddings, norms and the
    output head are the core's, where ``rest`` says so; else all data teach them.
    """
    silent = {topic: tuple(other for other in MODULES if other != topic) for topic in (CORE, *MODULES)}
    neurons, heads = (
        gr.RoutingSpec.split({CORE: every - len(MODULES) * own, **dict.fromkeys(MODULES, own)}, silent=silent)
        for every, own in ((settings.neurons, settings.module_neurons), (settings.heads, settings.module_heads))
    )
    found = block_sites(model, mlp=neurons, heads=heads)
    return {**found, **rest_sites(model, CORE, MODULES)} if rest else found
