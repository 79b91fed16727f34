"""A batch of integer labels never turns into a dense one-hot, however many labels there are.

With 50,000 labels on 8,192 tokens a one-hot has at least 400 MB even as bool. The largest tensor that routing
allocates, eager or compiled, is no larger than x (2 MB) or its table of masks.
"""

import torch

import gradroute as gr
from cases import Case, Shape, build_shape
from claims import Check, Outcome, at_most, main
from measure import Spread
from memory import check_instrument
from memory import measure as measure_memory
from settings import Settings

N_LABELS, WIDTH = 50_000, 64


def measure(settings: Settings) -> Outcome:
    spec = gr.RoutingSpec({token: slice(0, 32) if token % 2 else slice(32, 64) for token in range(N_LABELS)}, WIDTH)
    shape = Shape((8, 1024, WIDTH), labeled=2)
    case = build_shape("[8, 1024, 64], 50,000 labels", shape, torch.float32, settings.device, spec)
    check_instrument(case)
    return Outcome([_largest(case, mode) for mode in settings.modes])


def _largest(case: Case, mode: str) -> Check:
    memory = measure_memory(case.routing(mode), case)
    # CUDA does not tell single allocations: there the peak of a pass stands for them.
    largest = max(memory.forward, memory.backward) / 2 if memory.largest is None else memory.largest
    return at_most(f"{case.name}, {mode}: largest allocation, in sizes of x", Spread.exact(largest / case.x.nbytes), 1)


if __name__ == "__main__":
    main(__doc__, measure)
