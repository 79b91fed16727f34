"""Forward and backward take no longer than the fastest other exact way, at every shape, in eager mode and compiled.

That is ``torch.where(table[labels], x, x.detach())`` with a bool table, which is one line, exact, and looks at no
label; gradroute checks them in eager mode. (The detach formula is not exact: of inf it makes NaN.)
"""

from functools import partial

import torch

from cases import DTYPES, SHAPES, Case, build
from claims import Check, Outcome, at_most, main
from measure import compare
from rivals import OURS, WHERE, all_routings
from settings import Settings

LIMIT = 1.0


def measure(settings: Settings) -> Outcome:
    return Outcome(
        [
            _check(build(name, dtype, settings.device), mode, settings)
            for name in SHAPES
            for dtype in DTYPES
            for mode in settings.modes
        ]
    )


def _check(case: Case, mode: str, settings: Settings) -> Check:
    routings = all_routings(case)
    candidates = {}
    for name in (OURS, WHERE):
        routing = torch.compile(routings[name], dynamic=False) if mode == "compiled" else routings[name]
        candidates[name] = partial(case.forward_and_backward, routing)
    ratio = compare(candidates, settings, rounds=60).ratio(OURS, to=WHERE)
    return at_most(f"{case.name}, {case.dtype}, {mode}: gradroute / {WHERE}", ratio, LIMIT)


if __name__ == "__main__":
    main(__doc__, measure)
