"""`import gradroute` takes at most 1.05 times as long as `import torch`.

Each round is a process that imports one after the other: what importing gradroute takes is what both take. On a busy
machine, two processes that import torch differ by more than the margin.
"""

import os
import subprocess
import sys

import numpy as np

from claims import Outcome, at_most, main, note
from measure import Spread
from settings import Settings

REST = "gradroute.blocks, gradroute.optim, gradroute.surgery"
TIMED = f"""
from time import perf_counter
started = perf_counter()
import torch
torch_is_there = perf_counter()
import gradroute
gradroute_is_there = perf_counter()
import {REST}
all_is_there = perf_counter()
alone = torch_is_there - started
print((gradroute_is_there - started) / alone, (all_is_there - started) / alone)
"""


def measure(settings: Settings) -> Outcome:
    _ratios()  # from now on the files are in memory, and compiled to bytecode
    ratios = np.array([_ratios() for _ in range(1 if settings.quick else 20)])
    return Outcome(
        [
            at_most("import gradroute / import torch", Spread.of(ratios[:, 0]), 1.05),
            note(f"import {REST} / import torch", Spread.of(ratios[:, 1])),
        ]
    )


def _ratios() -> list[float]:
    # With bytecode, whatever this shell says: pip compiles what it installs.
    compiled = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    command = [sys.executable, "-c", TIMED]
    answer = subprocess.run(command, capture_output=True, text=True, check=True, env=compiled)
    return [float(text) for text in answer.stdout.split()]


if __name__ == "__main__":
    main(__doc__, measure)
