"""How time is measured here: candidates run in turn in one process, and are compared round by round.

A time on its own says little. The same multiplication takes three times as long when its result comes from fresh pages
of the operating system instead of memory that was just freed, and another process may be running beside. Therefore:

- Every round runs every candidate once, in a shuffled order. A ratio is taken within a round, so that what slows the
  machine slows both sides; what is reported is the median of these ratios and how far they spread.
- Each sample starts with one call that is not timed. The timed calls then find the allocator as the candidate itself
  leaves it, not as its neighbour left it. The allocator's own settings stay as they are for every user.
- A sample lasts some milliseconds at least, however short the call, and the garbage collector waits meanwhile.
"""

import gc
import random
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import numpy as np
import torch

from settings import Settings

Candidate = Callable[[], object]


@dataclass(frozen=True)
class Spread:
    """A median; the 10th and 90th percentile of the sample; and the 95 % bootstrap interval of the median."""

    median: float
    low: float
    high: float
    surely_above: float
    surely_below: float

    @classmethod
    def of(cls, sample: np.ndarray) -> "Spread":
        resampled = np.random.default_rng(0).choice(sample, (1000, len(sample)))
        interval = np.percentile(np.median(resampled, axis=1), [2.5, 97.5])
        return cls(float(np.median(sample)), *map(float, np.percentile(sample, [10, 90])), *map(float, interval))

    @classmethod
    def exact(cls, value: float) -> "Spread":
        return cls(value, value, value, value, value)

    def __mul__(self, factor: float) -> "Spread":
        return Spread(*(value * factor for value in vars(self).values()))


class Times:
    """Seconds per call of each candidate, one entry a round."""

    def __init__(self, seconds: dict[str, np.ndarray]) -> None:
        self.seconds = seconds

    def ratio(self, name: str, to: str) -> Spread:
        return Spread.of(self.seconds[name] / self.seconds[to])

    def difference(self, name: str, minus: str) -> Spread:
        return Spread.of(self.seconds[name] - self.seconds[minus])


def compare(
    candidates: Mapping[str, Candidate],
    settings: Settings,
    *,
    rounds: int,
    sample_seconds: float = 0.005,
    settle: bool = True,
) -> Times:
    """Time candidates against one another.

    Args:
        candidates: Functions by name. One that is a context manager too is entered around its samples, untimed.
        settings: Its device is waited for before the clock is read. A quick run takes one sample of one call.
        rounds: How many samples to take of each.
        sample_seconds: How long a sample lasts at least.
        settle: Whether each sample starts with a call that is not timed. Switch it off only where a call takes so long
            that what ran before cannot matter.
    """
    device = settings.device
    if settings.quick:
        rounds, sample_seconds = 1, 0.0
    calls = {name: _calls(candidate, device, sample_seconds) for name, candidate in candidates.items()}
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    order, shuffler = list(candidates), random.Random(0)
    gc.collect()
    gc.disable()
    try:
        for _ in range(rounds):
            shuffler.shuffle(order)
            for name in order:
                with around(candidates[name]):
                    if settle:
                        candidates[name]()
                    seconds[name].append(_time(candidates[name], calls[name], device))
    finally:
        gc.enable()
    return Times({name: np.array(sample) for name, sample in seconds.items()})


def around(candidate: Candidate) -> AbstractContextManager[object]:
    """The candidate itself where it is a context manager too, else nothing."""
    return candidate if isinstance(candidate, AbstractContextManager) else nullcontext()


def _calls(candidate: Candidate, device: torch.device, sample_seconds: float) -> int:
    """Warm up, and find how many calls fill a sample."""
    with around(candidate):
        candidate()
        return max(1, round(sample_seconds / _time(candidate, 1, device)))


def _time(candidate: Candidate, calls: int, device: torch.device) -> float:
    _wait(device)
    started = time.perf_counter()
    for _ in range(calls):
        candidate()
    _wait(device)
    return (time.perf_counter() - started) / calls


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
