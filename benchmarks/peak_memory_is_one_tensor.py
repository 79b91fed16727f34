"""Routing adds at most one tensor of x's shape to the peak memory of backward: the gradient that it returns.

For every shape and dtype, eager and compiled, with integer labels and routes of weight 1. The margin is 1 % for what
the labels need. Fractional weights beside zeros take a second pass, and that is shown too.
"""

import torch

import gradroute as gr
from cases import TOKENS, Case, build, grid, no_routing
from claims import Check, Outcome, at_most, main, note
from measure import Spread
from memory import check_instrument
from memory import measure as measure_memory
from settings import Settings

LIMIT = 1.01
SMALLEST_CUDA_BLOCK = 512


def measure(settings: Settings) -> Outcome:
    check_instrument(build(TOKENS, torch.float32, settings.device))
    checks = [_peak(case, mode) for case, mode in grid(settings)]
    halved = gr.RoutingSpec({0: gr.Route(slice(0, 384), weight=0.5), 1: slice(384, 768)}, 768)
    fractional = _peak(build(TOKENS, torch.float32, settings.device, halved), "eager")
    checks.append(note(f"{fractional.what}, with a weight of 0.5", fractional.value))
    return Outcome(checks)


def _peak(case: Case, mode: str) -> Check:
    extra = measure_memory(case.routing(mode), case).backward - measure_memory(no_routing, case).backward
    limit = LIMIT + (SMALLEST_CUDA_BLOCK / case.x.nbytes if case.x.is_cuda else 0)
    what = f"{case.name}, {case.dtype}, {mode}: added to the peak, in sizes of x"
    return at_most(what, Spread.exact(extra / case.x.nbytes), limit)


if __name__ == "__main__":
    main(__doc__, measure)
