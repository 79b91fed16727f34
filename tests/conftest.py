"""Hypothesis without wall-clock deadlines; garbage collections and compilations that are quick."""

import functools
import gc
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile("gradroute", deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True)
settings.load_profile("gradroute")


def pytest_collection_finish() -> None:
    """After the imports, and before the first test."""
    _spare_dynamo_what_only_costs_time()
    gc.set_threshold(10_000, 10, 10)


WALKED = pytest.StashKey[tuple[Path, int]]()


def pytest_runtest_setup(item: pytest.Item) -> None:
    """At the start of each file, and where a test has imported much: what is there stays, and need not be walked again.

    Each garbage collection would walk all that imports and compilers keep. Some trainers ask for one at every turn.
    """
    now = item.path, len(sys.modules) // 100
    if item.config.stash.get(WALKED, None) != now:
        item.config.stash[WALKED] = now
        gc.collect()
        gc.freeze()


def _spare_dynamo_what_only_costs_time() -> None:
    """Compiling hundreds of small functions; where a torch has other names for it, nothing is spared."""
    bytecode = sys.modules.get("torch._dynamo.bytecode_transformation")
    guards = sys.modules.get("torch._dynamo.guards")
    if hasattr(bytecode, "_cached_cleaned_instructions"):  # of 128 functions; a trace of hooks goes through more
        unlimited = functools.cache(bytecode._cached_cleaned_instructions.__wrapped__)
        bytecode._cached_cleaned_instructions = unlimited
    if hasattr(guards, "profile_guard_manager"):  # empties the processor's caches, to log how long guards take
        guards.profile_guard_manager = lambda *_: 0.0
