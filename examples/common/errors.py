"""Errors that the command line prints as one message, without a traceback."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager


class ExampleError(RuntimeError):
    """Something that the person who runs the example can mend; the message says how."""


@contextmanager
def told(interrupted: str) -> Iterator[None]:
    """Exit with the message of an `ExampleError`; or, after Ctrl-C, with what to do next."""
    try:
        yield
    except ExampleError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        print(f"interrupted: {interrupted}", file=sys.stderr)
        sys.exit(130)
