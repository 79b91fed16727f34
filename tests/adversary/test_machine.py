"""The machine lives through a fixed set of lives with the suite; `make adversary` makes up new ones for as long as asked."""

import os

from hypothesis import HealthCheck, settings

from adversary.machine import Life

TestLife = Life.TestCase
TestLife.settings = settings(
    max_examples=300,
    stateful_step_count=20,
    derandomize="NEW_LIVES" not in os.environ,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)
