"""``python -m gradroute``: versions, the machine, and whether routing works on it. Exits with 1 if it does not."""

import argparse
import sys
from collections.abc import Sequence

from .selfcheck import report


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the report; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m gradroute", description=__doc__)
    parser.add_argument("--no-compile", action="store_true", help="do not try torch.compile, which takes the longest")
    return 0 if report(compiled=not parser.parse_args(arguments).no_compile) else 1


if __name__ == "__main__":
    sys.exit(main())
