"""The cost is flat in the number of labels up to 50,000, and linear in the number of tokens.

Forward and backward of [batch, 1024, 768] with token ids as labels and two routes. Flat: 50,000 labels take at most
1.25 times as long as 2. Linear: from batch 1 to 8 the time grows at most 1.25 times as much as that of one
multiplication of the gradient, which the caches favour in the same way when it is small.
"""

from functools import partial

import torch

import gradroute as gr
from cases import Case, Shape, build_shape
from claims import Check, Outcome, at_most, main, note
from measure import Spread, compare
from settings import Settings

LIMIT = 1.25
WIDTH = 768
FEW_LABELS, MANY_LABELS = 2, (50, 1000, 50_000)
SMALL_BATCH, BATCHES = 1, (2, 4, 8)


def measure(settings: Settings) -> Outcome:
    return Outcome([*_flat_in_labels(settings), *_linear_in_tokens(settings)])


def _flat_in_labels(settings: Settings) -> list[Check]:
    cases = {n: _case(8, n, settings) for n in (FEW_LABELS, *MANY_LABELS)}
    candidates = {str(n): partial(case.forward_and_backward, case.routed) for n, case in cases.items()}
    times = compare(candidates, settings, rounds=60)
    few = str(FEW_LABELS)
    return [at_most(f"{n:,} labels / {few} labels", times.ratio(str(n), to=few), LIMIT) for n in MANY_LABELS]


def _linear_in_tokens(settings: Settings) -> list[Check]:
    candidates = {}
    for batch in (SMALL_BATCH, *BATCHES):
        case = _case(batch, MANY_LABELS[-1], settings)
        factor = torch.rand_like(case.grad)
        candidates[f"route {batch}"] = partial(case.forward_and_backward, case.routed)
        candidates[f"multiply {batch}"] = partial(torch.mul, case.grad, factor)
    seconds = compare(candidates, settings, rounds=60).seconds
    checks = []
    for batch in BATCHES:
        growth = seconds[f"route {batch}"] / seconds[f"route {SMALL_BATCH}"]
        growth_of_multiply = seconds[f"multiply {batch}"] / seconds[f"multiply {SMALL_BATCH}"]
        what = f"{batch}k tokens / 1k tokens"
        checks.append(
            at_most(f"{what}, over the same of a multiplication", Spread.of(growth / growth_of_multiply), LIMIT)
        )
        checks.append(note(f"{what}, each token", Spread.of(growth / batch)))
    return checks


def _case(batch: int, n_labels: int, settings: Settings) -> Case:
    halves = (slice(0, WIDTH // 2), slice(WIDTH // 2, WIDTH))
    spec = gr.RoutingSpec({token: halves[token % 2] for token in range(n_labels)}, WIDTH)
    shape = Shape((batch, 1024, WIDTH), labeled=2)
    return build_shape(f"[{batch}, 1024, {WIDTH}]", shape, torch.float32, settings.device, spec)


if __name__ == "__main__":
    main(__doc__, measure)
