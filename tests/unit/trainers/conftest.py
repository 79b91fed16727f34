"""Each test of a trainer begins as a process of its own would."""

import os
from collections.abc import Iterator

import pytest
import torch
from accelerate.state import AcceleratorState


@pytest.fixture(autouse=True)
def as_in_a_process_of_its_own() -> Iterator[None]:
    """One thread; and nothing of what accelerate keeps for the whole process, such as the last trainer's bf16."""
    torch.set_num_threads(1)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    os.environ.pop("ACCELERATE_MIXED_PRECISION", None)  # which transformers 4 sets
