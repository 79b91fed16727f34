"""On CUDA, neither forward nor backward of routing waits for the device.

Nothing may raise under `torch.cuda.set_sync_debug_mode("error")`, and the profiler must record no synchronisation and
no copy to the host in either pass. Without CUDA this is not run, which is no success.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from cases import DTYPES, SHAPES, Case, build
from claims import Check, Outcome, at_most, main
from measure import Spread
from settings import Settings

PASSES = "benchmark_passes"


def measure(settings: Settings) -> Outcome:
    if not torch.cuda.is_available():
        return Outcome(not_run="no CUDA")
    device = torch.device("cuda")
    return Outcome([_waits(build(name, dtype, device)) for name in SHAPES for dtype in DTYPES])


def _waits(case: Case) -> Check:
    case.forward_and_backward(case.routed)  # tables move to the device once
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        with _waiting_raises(), record_function(PASSES):
            case.forward_and_backward(case.routed)
        torch.cuda.synchronize()
    events = profiler.events()
    passes = next(event.time_range for event in events if event.name == PASSES)
    waits = [
        event.name
        for event in events
        if ("Synchronize" in event.name or "DtoH" in event.name) and passes.start <= event.time_range.start < passes.end
    ]
    return at_most(f"{case.name}, {case.dtype}: waits for the device", Spread.exact(len(waits)), 0, unit="")


@contextmanager
def _waiting_raises() -> Iterator[None]:
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


if __name__ == "__main__":
    main(__doc__, measure)
