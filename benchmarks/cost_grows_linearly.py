"""Cost grows linearly in depth, in width and tokens as a multiplication's does, and not with the number of labels.

By the exponent that fits the times of a routed forward and backward pass, of which each round gives one: of GPT-2
blocks that are 2 to 48 deep; of a tensor that is 64 to 4096 units wide; of 10,000 to a million tokens; of 100 to a
million labels in a batch of 8,192 tokens. What is large fits in no cache, so that one multiplication by a factor of the
tensor's shape grows faster than linearly, too: for width and tokens the exponent of the ratio to it is what is claimed.
"""

from collections.abc import Iterable, Mapping, Sequence
from functools import partial

import numpy as np
import torch

import gradroute as gr
from cases import Case, Shape, build_shape
from claims import Check, Outcome, at_most, main, note
from gpt2 import SITES, build_blocks
from measure import Candidate, Spread, compare
from settings import Settings
from steps import RoutedStep

LINEAR, FLAT = 1.1, 0.05
DEPTHS, NARROW = (2, 6, 12, 24, 48), 64
WIDTHS = (64, 256, 1024, 4096)
TOKENS, WIDE = (10_000, 100_000, 1_000_000), 64
LABELS, BATCH = (100, 10_000, 1_000_000), 8192


def measure(settings: Settings) -> Outcome:
    last = -1 if settings.quick else None  # what is largest takes longest
    return Outcome(
        [
            _check("depth", {depth: _blocks(depth, settings) for depth in DEPTHS[:last]}, LINEAR, settings, rounds=8),
            *_beside("width", {width: _case(BATCH, width, 2, settings) for width in WIDTHS[:last]}, settings),
            *_beside("tokens", {tokens: _case(tokens, WIDE, 2, settings) for tokens in TOKENS[:last]}, settings),
            _check("labels", {n: _route(_case(BATCH, WIDE, n, settings)) for n in LABELS[:last]}, FLAT, settings),
        ]
    )


def _check(what: str, sizes: Mapping[int, Candidate], limit: float, settings: Settings, rounds: int = 20) -> Check:
    times = compare({str(size): candidate for size, candidate in sizes.items()}, settings, rounds=rounds)
    exponent = _exponent(sizes, [times.seconds[str(size)] for size in sizes])
    return at_most(_name("the time", what, sizes), exponent, limit, unit="")


def _beside(what: str, cases: Mapping[int, Case], settings: Settings) -> list[Check]:
    """The same beside one multiplication, which has to do with memory as well."""
    candidates = {f"route {size}": _route(case) for size, case in cases.items()}
    candidates |= {f"multiply {size}": partial(torch.mul, case.grad, case.grad.clone()) for size, case in cases.items()}
    seconds = compare(candidates, settings, rounds=20).seconds
    route, multiply = ([seconds[f"{name} {size}"] for size in cases] for name in ("route", "multiply"))
    ratios = [mine / other for mine, other in zip(route, multiply, strict=True)]
    return [
        at_most(_name("the time over a multiplication's", what, cases), _exponent(cases, ratios), LINEAR - 1, unit=""),
        note(_name("the time", what, cases), _exponent(cases, route), unit=""),
        note(_name("a multiplication's time", what, cases), _exponent(cases, multiply), unit=""),
    ]


def _exponent(sizes: Iterable[int], values: Sequence[np.ndarray]) -> Spread:
    """Of the power of the size that fits the values of each round."""
    return Spread.of(np.polyfit(np.log(list(sizes)), np.log(values), 1)[0])


def _name(of: str, what: str, sizes: Iterable[int]) -> str:
    return f"exponent of {of} by {what}, from {min(sizes):,} to {max(sizes):,}"


def _blocks(depth: int, settings: Settings) -> Candidate:
    blocks = build_blocks(settings.device, layers=depth, width=NARROW)
    pattern, _ = SITES["output of every MLP"]
    spec = gr.RoutingSpec.split({"a": NARROW // 2, "b": NARROW // 2})
    return RoutedStep(blocks.step(compiled=False), {pattern: spec}, blocks.labels)


def _case(tokens: int, width: int, n_labels: int, settings: Settings) -> Case:
    halves = (slice(0, width // 2), slice(width // 2, width))
    spec = gr.RoutingSpec({label: halves[label % 2] for label in range(n_labels)}, width)
    return build_shape(f"[{tokens}, {width}]", Shape((tokens, width)), torch.float32, settings.device, spec)


def _route(case: Case) -> Candidate:
    return partial(case.forward_and_backward, case.routed)


if __name__ == "__main__":
    main(__doc__, measure)
