"""One seed for all tests; and the Python blocks of README and documentation run as tests, so that none is a hand copy.

The blocks of a page share one namespace, in order, so pytest-xdist needs ``--dist loadfile``. A block that starts with
``>>>`` is a doctest.
"""

import os
import sys
from collections.abc import Iterator
from doctest import NORMALIZE_WHITESPACE
from importlib.util import find_spec
from types import ModuleType

import pytest
import torch
from sybil import Sybil
from sybil.integration.pytest import SybilItem
from sybil.parsers.markdown import PythonCodeBlockParser, SkipParser

#: Of other libraries, about their own use of what is to come: no reader can help it.
WARNINGS_OF_OTHERS = (
    "ignore:`isinstance\\(treespec, LeafSpec\\)` is deprecated:FutureWarning",  # Lightning
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning",  # peft
)


BACKWARD = torch.Tensor.backward


def _reproducible() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _reproducible_test() -> None:
    _reproducible()


def pytest_configure(config: pytest.Config) -> None:
    """pytest-xdist would begin with the files of many tests, and be left with the long ones of few."""
    config.option.loadscopereorder = False


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files come first. Blocks have no place for a mark, so the marks come from here."""
    items.sort(key=lambda item: item.get_closest_marker("long") is None)
    for item in items:
        if isinstance(item, SybilItem):
            for warning in WARNINGS_OF_OTHERS:
                item.add_marker(pytest.mark.filterwarnings(warning))


def lacks(package: str) -> bool:
    """Whether a block that needs a package must be skipped: ``<!-- skip: next if(lacks("peft"), reason=...) -->``.

    In continuous integration (``CI`` is set) nothing is skipped: what is missing fails.
    """
    missing = find_spec(package) is None
    if missing and os.environ.get("CI"):
        raise ModuleNotFoundError(f"{package} is missing, so that blocks of the documentation would not run")
    return missing


def _setup(namespace: dict[str, object]) -> None:
    """For each page: fixtures do not reach its blocks."""
    _reproducible()
    namespace["lacks"] = lacks


@pytest.fixture
def nnsight() -> Iterator[ModuleType]:
    """Imported for one test: it changes `Tensor.backward` and `object` for the whole process."""
    import nnsight  # noqa: PLC0415

    yield nnsight
    _undo_nnsight()


def _undo_nnsight(namespace: object = None) -> None:
    """As if nnsight had not been imported: whoever imports it next gets it as new."""
    if "nnsight" in sys.modules:
        from nnsight._c import unmount  # noqa: PLC0415

        torch.Tensor.backward = BACKWARD
        unmount("save")
        for name in [name for name in sys.modules if name.partition(".")[0] == "nnsight"]:
            del sys.modules[name]


pytest_collect_file = Sybil(
    # A long message may be broken into lines.
    parsers=[PythonCodeBlockParser(doctest_optionflags=NORMALIZE_WHITESPACE), SkipParser()],
    patterns=["README.md", "docs/*.md", "docs/*/*.md"],
    setup=_setup,
    teardown=_undo_nnsight,
).pytest()
