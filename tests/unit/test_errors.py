"""The error tree, and the helpers that keep messages short."""

import inspect

import pytest

from gradroute import errors
from gradroute.errors import did_you_mean, preview


def test_whatever_is_raised_can_be_caught_as_one():
    classes = [getattr(errors, name) for name in errors.__all__ if name.endswith("Error")]
    assert all(issubclass(kind, errors.RoutingError) for kind in classes)
    assert issubclass(errors.RoutingError, ValueError)
    assert all(inspect.getdoc(getattr(errors, name)) for name in errors.__all__)


@pytest.mark.parametrize("kind", [errors.LeakError, errors.NotRoutedError])
def test_what_tests_assert_fails_as_an_assertion_does(kind):
    assert issubclass(kind, AssertionError)


@pytest.mark.parametrize("n", [0, 1, 5, 6, 1000])
def test_a_preview_shows_the_first_few_and_counts_the_rest(n):
    limit = 5
    shown = preview(iter(range(n)), limit)
    assert shown.startswith(", ".join(str(number) for number in range(min(n, limit))))
    assert shown.endswith(f"({n - limit} more)") == (n > limit)


def test_a_suggestion_is_one_of_the_known_names_as_it_was_given():
    known = ["retain", 7, ("forget", 1)]
    for name in known:
        assert did_you_mean(str(name), known).startswith(f"Did you mean {name!r}")
    far = did_you_mean("zzzzzzzz", known)
    assert far == f"Known: {preview(known)}."
