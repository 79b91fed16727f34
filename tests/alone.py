"""Tests of trainers, each as in a process of its own."""

import os
import sys


def forget_the_last_trainer() -> None:
    """What accelerate keeps for the whole process: its state, and what a trainer told it by the environment.

    Such as bf16 (by transformers 4) and the backend of `torch.compile`: the next trainer would train in bf16, or compile.
    """
    state = sys.modules.get("accelerate.state")
    if state is not None:
        state.AcceleratorState._reset_state(reset_partial_state=True)
    for name in [name for name in os.environ if name.startswith("ACCELERATE_")]:
        del os.environ[name]
