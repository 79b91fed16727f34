"""Each test of a trainer begins as a process of its own would."""

from collections.abc import Iterator

import pytest
import torch

from alone import forget_the_last_trainer


@pytest.fixture(autouse=True)
def as_in_a_process_of_its_own() -> Iterator[None]:
    torch.set_num_threads(1)
    yield
    forget_the_last_trainer()
