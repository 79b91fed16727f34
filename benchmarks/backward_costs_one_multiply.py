"""Backward costs at most 1.5 times one multiplication of the gradient; forward copies nothing.

From [8, 1024, 768] with token labels up. The multiplication is by a factor of the gradient's own shape, as if the mask
lay ready; both sides allocate their result. Backward also looks the mask up, and goes through the autograd engine.
What forward adds is a copy of the labels.
"""

import torch

from cases import DTYPES, TOKENS, Case, Shape, build, build_shape, no_routing
from claims import Check, Outcome, at_most, main, note
from measure import Spread, compare
from memory import check_instrument
from memory import measure as measure_memory
from settings import Settings

LIMIT = 1.5
SLACK = 1024  #: Bytes, for scalars.
TWICE = "[16, 1024, 768], tokens"


def measure(settings: Settings) -> Outcome:
    checks: list[Check] = []
    for dtype in DTYPES:
        case = build(TOKENS, dtype, settings.device)
        check_instrument(case)
        checks += [*_backward(case, settings), _forward(case)]
        twice = build_shape(TWICE, Shape((16, 1024, 768), labeled=2), dtype, settings.device)
        checks += _backward(twice, settings)
    return Outcome(checks)


def _backward(case: Case, settings: Settings) -> list[Check]:
    routed = case.routed(case.x, case.labels)
    factor = case.spec.mask(case.labels).to(case.grad)
    row = factor[0, 0].clone()
    times = compare(
        {
            "backward": lambda: torch.autograd.grad(routed, case.x, case.grad, retain_graph=True),
            "multiply": lambda: case.grad * factor,
            "multiply by a row": lambda: case.grad * row,
        },
        settings,
        rounds=80,
    )
    name = f"{case.name}, {case.dtype}: backward / multiply"
    return [
        at_most(name, times.ratio("backward", to="multiply"), LIMIT),
        note(f"{name} by one row", times.ratio("backward", to="multiply by a row")),
    ]


def _forward(case: Case) -> Check:
    plain, routed = (measure_memory(routing, case).forward for routing in (no_routing, case.routed))
    what = f"{case.name}, {case.dtype}: bytes that forward adds (x has {case.x.nbytes:,})"
    return at_most(what, Spread.exact(routed - plain), case.labels.nbytes + SLACK, unit="bytes")


if __name__ == "__main__":
    main(__doc__, measure)
