"""`import gradroute` takes at most 1.05 times as long as `import torch`.

Each import is made by a fresh process, and its start is timed with it.
"""

import subprocess
import sys
from functools import partial

from claims import Outcome, at_most, main, note
from measure import compare
from settings import Settings

TORCH, GRADROUTE = "import torch", "import gradroute"
REST = "import gradroute.blocks, gradroute.optim, gradroute.surgery"


def measure(settings: Settings) -> Outcome:
    candidates = {code: partial(_run, code) for code in (TORCH, GRADROUTE, REST)}
    # A process remembers nothing of the one before it, and each takes a second or two.
    times = compare(candidates, settings, rounds=25, sample_seconds=0.0, settle=False)
    return Outcome(
        [
            at_most(f"{GRADROUTE} / {TORCH}", times.ratio(GRADROUTE, TORCH), 1.05),
            note(f"{REST} / {TORCH}", times.ratio(REST, TORCH)),
        ]
    )


def _run(code: str) -> None:
    subprocess.run([sys.executable, "-c", code], check=True)


if __name__ == "__main__":
    main(__doc__, measure)
