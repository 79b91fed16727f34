"""A training step of GPT-2-small's blocks holds at most 1 % more memory at once with every MLP and head routed.

The step is forward and backward, with sites on neurons and heads at both ends (level "parameters"), and with sites on
every MLP's and every attention's output (level "activations").
"""

import torch

import gradroute as gr
from claims import Check, Outcome, at_most, main
from gpt2 import HEADS, WIDTH, Blocks, build_blocks
from gradroute.blocks import block_sites
from measure import Spread
from memory import peak
from settings import Settings

LIMIT = 1.01


def measure(settings: Settings) -> Outcome:
    blocks = build_blocks(settings.device)
    neurons, heads, outputs = (gr.RoutingSpec.split({"a": n // 2, "b": n // 2}) for n in (4 * WIDTH, HEADS, WIDTH))
    sites = {
        "neurons and heads at both ends": block_sites(blocks.model, mlp=neurons, heads=heads),
        "outputs of every MLP and attention": {"h.*.mlp": outputs, "h.*.attn": gr.Site(outputs, index=0)},
    }
    unrouted = _peak(blocks, None)
    checks: list[Check] = []
    for name, own in sites.items():
        router = gr.Router(blocks.model, own)
        checks.append(at_most(f"{name}: routed / unrouted", Spread.exact(_peak(blocks, router) / unrouted), LIMIT))
        router.remove()
    return Outcome(checks)


def _peak(blocks: Blocks, router: gr.Router | None) -> int:
    loss = blocks.step(compiled=False).loss

    def step() -> None:
        for parameter in blocks.model.parameters():
            parameter.grad = None
        if router is None:
            loss().backward()  # type: ignore[no-untyped-call]
            return
        with router(blocks.labels):
            loss().backward()  # type: ignore[no-untyped-call]

    step()  # what is made once, such as tables, is no cost of a step
    for parameter in blocks.model.parameters():
        parameter.grad = None
    return peak(step, torch.device(blocks.inputs.device))


if __name__ == "__main__":
    main(__doc__, measure)
