"""Settings for all tests: two cores, no GPU, one seed, and hypothesis without wall-clock deadlines."""

import pytest
import torch
from hypothesis import HealthCheck, settings

settings.register_profile("gradroute", deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True)
settings.load_profile("gradroute")


@pytest.fixture(autouse=True)
def _reproducible():
    torch.set_num_threads(1)
    torch.manual_seed(0)
