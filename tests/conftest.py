"""Hypothesis without wall-clock deadlines, and garbage collections that are quick."""

import gc

from hypothesis import HealthCheck, settings

settings.register_profile("gradroute", deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True)
settings.load_profile("gradroute")


def pytest_collection_finish() -> None:
    """What the imports made stays: each collection, of which some trainers ask at every turn, would walk all of it."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 10, 10)
