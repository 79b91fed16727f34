"""A periodic audit takes at most 1 % of the time of training, at its defaults: one in 1000 steps.

Of the MNIST VAE, routed at its latent, and of a stack of GPT-2-small's blocks with labels per token and sites on every
MLP. The audits that count are those after the first: what the first finds out once is reported in training steps.
"""

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

import gradroute as gr
from claims import Check, Outcome, at_most, main, note
from gpt2 import SITES, build_blocks
from gradroute.diagnostics import PeriodicAudit
from measure import Spread, compare
from settings import Settings
from steps import UNROUTED, RoutedStep, TrainStep
from vae import vae_steps  # also puts the examples on the path

EVERY = 1000
LIMIT = 0.01


def periodic(router: gr.Router, loss: Callable[[Any], Tensor]) -> PeriodicAudit:
    """Audits whenever it is called; the default is one call in `EVERY` steps."""
    return PeriodicAudit(router, loss, every=1, overhead=float("inf"), tolerance=1.0)


def vae(device: torch.device) -> tuple[TrainStep, PeriodicAudit, Any, Tensor]:
    from mnist_vae.config import RECIPES  # noqa: PLC0415
    from mnist_vae.model import DIGITS, SIDE  # noqa: PLC0415

    step = vae_steps(device, compiled=False)[UNROUTED]
    labels = torch.arange(RECIPES["default"].batch_size, device=device) % 10
    routed = RoutedStep(step, {"decoder": gr.Site(DIGITS, on="input")}, labels)
    model: Any = step.model
    images = torch.rand(len(labels), 1, SIDE, SIDE, device=device)
    return routed, periodic(routed.router, lambda batch: model.losses(batch, None).total), images, labels


def gpt2(device: torch.device) -> tuple[TrainStep, PeriodicAudit, Any, Tensor]:
    blocks = build_blocks(device)
    pattern, width = SITES["output of every MLP"]
    spec = gr.RoutingSpec.split({"a": width // 2, "b": width // 2})
    routed = RoutedStep(blocks.step(compiled=False), {pattern: spec}, blocks.labels)
    model: nn.Module = blocks.model

    def loss(batch: tuple[Tensor, Tensor]) -> Tensor:
        output: Tensor = model(inputs_embeds=batch[0]).last_hidden_state
        return (output * batch[1]).mean()

    return routed, periodic(routed.router, loss), (blocks.inputs, blocks.target), blocks.labels


def measure(settings: Settings) -> Outcome:
    checks: list[Check] = []
    for name, make in (("VAE", vae), ("GPT-2 blocks", gpt2)):
        step, audit, batch, labels = make(settings.device)
        began = time.perf_counter()
        audit(batch, labels)
        first = time.perf_counter() - began
        candidates = {"step": step, "audit": partial(audit, batch, labels)}
        times = compare(candidates, settings, rounds=5, sample_seconds=0, settle=False)
        share = times.ratio("audit", to="step") * (1 / EVERY)
        checks.append(at_most(f"{name}, audits, as a part of the time of {EVERY} steps", share, LIMIT))
        steps = Spread.exact(first / float(times.seconds["step"].mean()))
        checks.append(note(f"{name}, the first audit", steps, unit="training steps"))
    return Outcome(checks)


if __name__ == "__main__":
    main(__doc__, measure)
