"""Keeping an optimizer off frozen units costs two copies of these, and little of a training step: a record.

A record, not an aim: the limits were set after a first measurement and above it, to notice when the costs grow. Of 12
linear layers of width 768 under AdamW, each with a site on its output: a training step with 512 examples, where an
eighth of the units are frozen and where half are; the optimizer's step alone, which does little but move memory, where
none, an eighth or half are; and clipping of two routes each by its own norm, against clipping all gradients at once.
"""

import torch
from torch import nn

import gradroute as gr
from claims import Check, Outcome, at_most, main
from gradroute.optim import Isolation, clip_grad_norm_per_route_
from measure import Candidate, compare
from settings import Settings

DEPTH, WIDTH, BATCH = 12, 768, 512
NONE, EIGHTH, HALF = 0, WIDTH // 8, WIDTH // 2
STEP_LIMITS = {
    "foreach": {NONE: 1.2, EIGHTH: 1.8, HALF: 3.0},
    "fused": {NONE: 1.3, EIGHTH: 2.2, HALF: 5.5},
}
TRAINING_LIMITS = {EIGHTH: 1.1, HALF: 1.2}


def stack(device: torch.device) -> nn.Sequential:
    return nn.Sequential(*[nn.Linear(WIDTH, WIDTH) for _ in range(DEPTH)]).to(device)


def adamw(model: nn.Module, kind: str) -> torch.optim.Optimizer:
    """AdamW that has its state already."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, **{kind: True})
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    return optimizer


def router(model: nn.Module, frozen: int) -> gr.Router:
    """The last units of each layer are those that label 0 may not teach."""
    spec = gr.RoutingSpec({0: slice(0, WIDTH - frozen), 1: slice(WIDTH - frozen, WIDTH)}, WIDTH)
    return gr.Router(model, {"*": gr.Site(spec, level="parameters")})


def step(settings: Settings, kind: str, frozen: int | None) -> Candidate:
    """An optimizer's step, in which so many units of each layer are frozen; None: without isolation."""
    model = stack(settings.device)
    optimizer = adamw(model, kind)
    if frozen is None:
        return optimizer.step
    labels = torch.zeros(1, dtype=torch.long, device=settings.device)
    routes = router(model, frozen)
    isolation = Isolation(routes, optimizer)
    isolation.discard()

    def isolated() -> None:
        with routes(labels):
            pass
        optimizer.step()

    return isolated


def training_step(settings: Settings, frozen: int, *, isolated: bool) -> Candidate:
    """Forward, backward and the optimizer's step, routed in both cases."""
    model = stack(settings.device)
    optimizer = adamw(model, "foreach")
    optimizer.zero_grad()
    routes = router(model, frozen)
    if isolated:
        Isolation(routes, optimizer)
    x = torch.randn(BATCH, WIDTH, device=settings.device)
    labels = torch.zeros(BATCH, dtype=torch.long, device=settings.device)

    def train() -> None:
        with routes(labels):
            model(x).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    return train


def clipping(settings: Settings) -> dict[str, Candidate]:
    model = stack(settings.device)
    routes = router(model, HALF)
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 1e-6)  # below the norm: clipping again and again changes nothing
    return {
        "at once": lambda: nn.utils.clip_grad_norm_(model.parameters(), 1.0),
        "per route": lambda: clip_grad_norm_per_route_(routes, 1.0),
    }


def measure(settings: Settings) -> Outcome:
    checks: list[Check] = []
    for kind, limits in STEP_LIMITS.items():
        steps = {str(frozen): step(settings, kind, frozen) for frozen in (None, *limits)}
        times = compare(steps, settings, rounds=40)
        for frozen, limit in limits.items():
            what = f"{kind} AdamW step, {frozen} of {WIDTH} units frozen"
            checks.append(at_most(what, times.ratio(str(frozen), to="None"), limit))
    for frozen, limit in TRAINING_LIMITS.items():
        steps = {name: training_step(settings, frozen, isolated=name == "isolated") for name in ("bare", "isolated")}
        ratio = compare(steps, settings, rounds=25).ratio("isolated", to="bare")
        checks.append(at_most(f"training step, foreach AdamW, {frozen} of {WIDTH} units frozen", ratio, limit))
    ratio = compare(clipping(settings), settings, rounds=40).ratio("per route", to="at once")
    checks.append(at_most("clipping per route", ratio, 1.5))
    return Outcome(checks)


if __name__ == "__main__":
    main(__doc__, measure)
