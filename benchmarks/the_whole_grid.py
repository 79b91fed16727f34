"""Every way to route, side by side: each shape and dtype, eager and compiled, its time, memory and what it saves.

For the table in the docs. The one claim: all compute the same gradient.
"""

from functools import partial

import torch

from cases import DTYPES, SHAPES, Case, Routing, build
from claims import Outcome, main
from measure import compare
from memory import Memory
from memory import measure as measure_memory
from rivals import NO_ROUTING, OURS, all_routings
from settings import Settings

Row = dict[str, object]


def measure(settings: Settings) -> Outcome:
    rows: list[Row] = []
    for name in SHAPES:
        for dtype in DTYPES:
            case = build(name, dtype, settings.device)
            routings = all_routings(case)
            rows += _rows(case, "eager", routings, settings)
            if not settings.quick:
                compiled = {name: torch.compile(routing, dynamic=False) for name, routing in routings.items()}
                rows += _rows(case, "compiled", compiled, settings)
    return Outcome(rows=rows)


def _rows(case: Case, mode: str, routings: dict[str, Routing], settings: Settings) -> list[Row]:
    candidates = {name: partial(case.forward_and_backward, routing) for name, routing in routings.items()}
    times = compare(candidates, settings, rounds=15)
    memory = {name: measure_memory(routing, case) for name, routing in routings.items()}
    common = {"shape": case.name, "dtype": case.dtype, "mode": mode}
    return [
        {**common, "routing": name, "time": vars(times.ratio(name, to=OURS)), **_sizes(memory, name, case.x.nbytes)}
        for name in routings
    ]


def _sizes(memory: dict[str, Memory], name: str, size: int) -> Row:
    """What is saved, and what is added to the peak of backward, in sizes of x."""
    return {
        "saved": memory[name].saved / size,
        "peak": (memory[name].backward - memory[NO_ROUTING].backward) / size,
    }


if __name__ == "__main__":
    main(__doc__, measure)
