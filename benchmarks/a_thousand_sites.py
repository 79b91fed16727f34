"""A thousand sites attach in under a second, and each adds at most 20 microseconds to a step.

The step is forward and backward through a thousand small linear layers, all routed by one label tensor, next to the
same layers without a router. What the floor of it is made of is shown, too: a hook that does nothing, a hook that
applies an autograd Function which does nothing, and one whose Function multiplies the gradient by a mask made ahead of
time.
"""

import time
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import gradroute as gr
from claims import Outcome, at_most, main, note
from measure import Spread, Times, compare
from settings import Settings

SITES, WIDTH, BATCH = 1000, 16, 8
ATTACH_SECONDS, MICROSECONDS_A_SITE = 1.0, 20.0


class _Nothing(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.detach()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad


class _Multiply(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, mask: Tensor) -> Tensor:
        ctx.mask = mask
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad * ctx.mask, None


FLOOR = {
    "a hook that does nothing": lambda mask: lambda module, args, output: None,
    "a hook with a Function that does nothing": lambda mask: lambda module, args, output: _Nothing.apply(output),
    "a hook with a Function that multiplies": lambda mask: lambda module, args, output: _Multiply.apply(output, mask),
}


class _Layers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(*[nn.Linear(WIDTH, WIDTH) for _ in range(SITES)])


def measure(settings: Settings) -> Outcome:
    spec = gr.RoutingSpec.split({"a": WIDTH // 2, "b": WIDTH // 2})
    attach = Spread.of(np.array([_attach(spec) for _ in range(3 if settings.quick else 10)]))
    times = _times(spec, settings)
    routed, *floor = (times.difference(name, minus="unrouted") * (1e6 / SITES) for name in ("routed", *FLOOR))
    return Outcome(
        [
            at_most("attaching all sites", attach, ATTACH_SECONDS, unit="s"),
            at_most("added to a step by each site", routed, MICROSECONDS_A_SITE, unit="us"),
            *(note(f"added by {name}", part, unit="us") for name, part in zip(FLOOR, floor, strict=True)),
            note("the whole step: routed / unrouted", times.ratio("routed", to="unrouted")),
        ]
    )


def _attach(spec: gr.RoutingSpec) -> float:
    model = _Layers()
    started = time.perf_counter()
    router = gr.Router(model, {"layers.*": spec})
    seconds = time.perf_counter() - started
    if len(router.sites) != SITES:
        raise RuntimeError(f"expected {SITES} sites; got {len(router.sites)}.")
    return seconds


def _times(spec: gr.RoutingSpec, settings: Settings) -> Times:
    unrouted, routed = (_Layers().to(settings.device).layers for _ in range(2))
    router = gr.Router(routed, {"[0-9]*": spec})
    inputs = torch.randn(BATCH, WIDTH, device=settings.device)
    labels = torch.randint(0, 2, (BATCH,), device=settings.device)

    mask = spec.mask(labels)

    def routed_step() -> None:
        with router(labels):
            routed(inputs).sum().backward()

    candidates = {"unrouted": lambda: unrouted(inputs).sum().backward(), "routed": routed_step}
    for name, hook in FLOOR.items():
        layers = _Layers().to(settings.device).layers
        for layer in layers:
            layer.register_forward_hook(hook(mask))
        candidates[name] = partial(_step, layers, inputs)
    return compare(candidates, settings, rounds=60)


def _step(layers: nn.Module, inputs: Tensor) -> None:
    layers(inputs).sum().backward()


if __name__ == "__main__":
    main(__doc__, measure)
