"""Cost grows linearly in depth, width and tokens, and not at all with the number of labels.

By the exponent that fits the times of a routed forward and backward pass, of which each round gives one: of GPT-2
blocks that are 2 to 48 deep; of a tensor that is 64 to 4096 units wide; of 10,000 to a million tokens; of 100 to a
million labels in a batch of 8,192 tokens.
"""

from collections.abc import Mapping
from functools import partial

import numpy as np
import torch

import gradroute as gr
from cases import Shape, build_shape
from claims import Check, Outcome, at_most, main
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
            _check("width", {width: _route(BATCH, width, 2, settings) for width in WIDTHS[:last]}, LINEAR, settings),
            _check("tokens", {tokens: _route(tokens, WIDE, 2, settings) for tokens in TOKENS[:last]}, LINEAR, settings),
            _check("labels", {n: _route(BATCH, WIDE, n, settings) for n in LABELS[:last]}, FLAT, settings),
        ]
    )


def _check(what: str, sizes: Mapping[int, Candidate], limit: float, settings: Settings, rounds: int = 20) -> Check:
    times = compare({str(size): candidate for size, candidate in sizes.items()}, settings, rounds=rounds)
    logarithms = np.log([times.seconds[str(size)] for size in sizes])
    exponents = np.polyfit(np.log(list(sizes)), logarithms, 1)[0]
    name = f"exponent of the time by {what}, from {min(sizes):,} to {max(sizes):,}"
    return at_most(name, Spread.of(exponents), limit, unit="")


def _blocks(depth: int, settings: Settings) -> Candidate:
    blocks = build_blocks(settings.device, layers=depth, width=NARROW)
    pattern, _ = SITES["output of every MLP"]
    spec = gr.RoutingSpec.split({"a": NARROW // 2, "b": NARROW // 2})
    return RoutedStep(blocks.step(compiled=False), {pattern: spec}, blocks.labels)


def _route(tokens: int, width: int, n_labels: int, settings: Settings) -> Candidate:
    halves = (slice(0, width // 2), slice(width // 2, width))
    spec = gr.RoutingSpec({label: halves[label % 2] for label in range(n_labels)}, width)
    case = build_shape(f"[{tokens}, {width}]", Shape((tokens, width)), torch.float32, settings.device, spec)
    return partial(case.forward_and_backward, case.routed)


if __name__ == "__main__":
    main(__doc__, measure)
