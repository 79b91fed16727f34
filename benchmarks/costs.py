"""What routing adds to whole training steps of the two models that are measured."""

from collections.abc import Mapping

import torch
import torch._dynamo.config

from gpt2 import gpt2_steps
from measure import Spread, around, compare
from settings import Settings
from steps import UNROUTED, TrainStep
from vae import vae_steps


def step_ratios(settings: Settings, *, compiled: bool) -> dict[str, Spread]:
    """Of each model, and each way to route it: the time of a step, over that of an unrouted step.

    Dynamo guards on hooks here, on both sides alike. By default it does not, and then a routed model may run the code
    that was compiled for its unrouted twin.
    """
    with torch._dynamo.config.patch(skip_nnmodule_hook_guards=False):
        vae, gpt2 = (make(settings.device, compiled=compiled) for make in (vae_steps, gpt2_steps))
        return {
            **_ratios("VAE", vae, settings, rounds=100, settle=True),
            **_ratios("GPT-2 blocks", gpt2, settings, rounds=30, settle=False),
        }


def _ratios(
    model: str, steps: Mapping[str, TrainStep], settings: Settings, *, rounds: int, settle: bool
) -> dict[str, Spread]:
    _check_that_they_route(steps)
    times = compare(steps, settings, rounds=rounds, sample_seconds=0, settle=settle)
    _check_that_they_route(steps)  # again: compiled code is chosen anew at every call
    return {f"{model}, {name} / {UNROUTED}": times.ratio(name, to=UNROUTED) for name in steps if name != UNROUTED}


def _check_that_they_route(steps: Mapping[str, TrainStep]) -> None:
    """A step that lost its routing would cost nothing and pass."""
    norms: dict[str, float] = {}
    for name, step in steps.items():
        with around(step):
            step()
            norms[name] = step.gradient_norm()
    for name, norm in norms.items():
        if name != UNROUTED and abs(norm / norms[UNROUTED] - 1) < 1e-6:
            raise RuntimeError(f"{name!r} leaves the gradient of an unrouted step: it routes nothing.")
