"""The machine lives through a fixed set of lives with the suite; `make adversary` makes up new ones for as long as asked."""

import os

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test

from adversary.life import Life

pytestmark = pytest.mark.long

LIVES = 150
NEW = "NEW_LIVES" in os.environ


def live(life=Life, **changed):
    """Live through many lives; the first gradient that is lost without a word raises."""
    usual = {
        "max_examples": LIVES,
        "stateful_step_count": 20,
        "derandomize": not NEW,
        "deadline": None,
        "database": None,
        "suppress_health_check": list(HealthCheck),
    }
    run_state_machine_as_test(life, settings=settings(**(usual | changed)))


def test_no_life_loses_a_gradient():
    Life.checked.clear()
    live()
    assert Life.checked["routed"] > LIVES, "so few gradients are checked that finding nothing says little"
