"""With half of the units held by an isolation or by a hold, AdamW's step takes at most 1.2 times as long as without.

Of 12 linear layers of width 768 under AdamW, foreach and fused: the optimizer's step alone, which does little but move
memory, where none, an eighth or half of the units are held. Around an isolation's step and the one that it is compared
with is a block of labels, by which it knows what to hold. Also a training step with 512 examples; and clipping of two
routes each by its own norm, against clipping all gradients at once. Units in a row are shown to the optimizer as views;
every other unit is not, so that what is held is copied, which is shown too.
"""

import torch
from torch import nn

import gradroute as gr
from claims import Check, Outcome, at_most, main, note
from gradroute.optim import Hold, Isolation, clip_grad_norm_per_route_
from measure import Candidate, compare
from settings import Settings

DEPTH, WIDTH, BATCH = 12, 768, 512
NONE, EIGHTH, HALF = 0, WIDTH // 8, WIDTH // 2
STEP_LIMIT = 1.2
TRAINING_LIMITS = {EIGHTH: 1.05, HALF: 1.05}


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


def step(settings: Settings, kind: str, frozen: int, *, isolated: bool) -> Candidate:
    """A block of labels and an optimizer's step, in which so many units of each layer are frozen if isolated."""
    model = stack(settings.device)
    optimizer = adamw(model, kind)
    labels = torch.zeros(1, dtype=torch.long, device=settings.device)
    routes = router(model, frozen)
    if isolated:
        Isolation(routes, optimizer).discard()

    def block_and_step() -> None:
        with routes(labels):
            pass
        optimizer.step()

    return block_and_step


def held_step(settings: Settings, kind: str, rows: int | list[int]) -> Candidate:
    """An optimizer's step, in which so many rows of each parameter, or these, are held."""
    model = stack(settings.device)
    optimizer = adamw(model, kind)
    held = slice(WIDTH - rows, WIDTH) if isinstance(rows, int) else rows
    hold = Hold(optimizer, dict.fromkeys(model.parameters(), held))

    def step() -> Hold:
        optimizer.step()
        return hold  # which lives as long as this does

    return step


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
    for kind in ("foreach", "fused"):
        scattered = list(range(0, WIDTH, 2))
        held: dict[str, int | list[int]] = {f"{n} of {WIDTH} rows held": n for n in (EIGHTH, HALF)}
        held[f"every other of {WIDTH} rows held"] = scattered
        steps = {"bare": adamw(stack(settings.device), kind).step, "block": step(settings, kind, NONE, isolated=False)}
        steps |= {name: held_step(settings, kind, rows) for name, rows in held.items()}
        for frozen in (NONE, EIGHTH, HALF):
            steps[f"{frozen} of {WIDTH} units frozen"] = step(settings, kind, frozen, isolated=True)
        times = compare(steps, settings, rounds=40)
        for name in list(steps)[2:]:
            ratio, what = times.ratio(name, to="bare" if name in held else "block"), f"{kind} AdamW step, {name}"
            checks.append(note(what, ratio) if name.startswith("every other") else at_most(what, ratio, STEP_LIMIT))
        with_block = times.ratio(f"{HALF} of {WIDTH} units frozen", to="bare")
        checks.append(note(f"{kind} AdamW step, {HALF} of {WIDTH} units frozen, and the block", with_block))
    for frozen, limit in TRAINING_LIMITS.items():
        steps = {name: training_step(settings, frozen, isolated=name == "isolated") for name in ("bare", "isolated")}
        ratio = compare(steps, settings, rounds=25).ratio("isolated", to="bare")
        checks.append(at_most(f"training step, foreach AdamW, {frozen} of {WIDTH} units frozen", ratio, limit))
    ratio = compare(clipping(settings), settings, rounds=40).ratio("per route", to="at once")
    checks.append(at_most("clipping per route", ratio, 1.5))
    return Outcome(checks)


if __name__ == "__main__":
    main(__doc__, measure)
