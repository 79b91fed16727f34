"""The machine lives through a fixed set of lives with the suite; `make adversary` makes up new ones for as long as asked."""

import os

from hypothesis import HealthCheck, settings

from adversary.machine import Life

#: With MINUTES, until these are over, and other lives each time.
MINUTES = float(os.environ.get("MINUTES", "0"))

TestLife = Life.TestCase
TestLife.settings = settings(
    max_examples=1_000_000 if MINUTES else 300,
    stateful_step_count=20,
    derandomize=not MINUTES,
    deadline=None,
    database=None,
    print_blob=bool(MINUTES),
    suppress_health_check=list(HealthCheck),
)
