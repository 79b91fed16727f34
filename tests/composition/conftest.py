"""Fixtures of the composition tests, and the table of what composes, written from their outcomes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from alone import forget_the_last_trainer
from composition.forms import FORMS, Routed
from composition.support_table import SupportTable

HERE = Path(__file__).parent
SHOWN = pytest.StashKey[dict[tuple[str, str, str], set[Path]]]()
"""What the tests that were collected show, and where: a feature, a form, and whether it is supported or refused."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--composition-table",
        type=Path,
        metavar="PATH",
        help="write the table of what composes with routing to PATH (Markdown), and its data beside it (.json)",
    )


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "supports(feature): the test shows that the feature composes with routing")
    config.addinivalue_line("markers", "refuses(feature, why): the test shows that the feature raises, and says why")
    path = config.getoption("--composition-table", None)
    if path is not None and not hasattr(config, "workerinput"):
        config.pluginmanager.register(SupportTable(path))


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """What a test shows travels with its report, so that the table can be written where xdist collects them."""
    collected = config.stash.setdefault(SHOWN, {})
    for item in items:
        if not item.path.is_relative_to(HERE):
            continue
        # A spurious warning that gradients are not routed is as wrong here as a missing one.
        item.add_marker(pytest.mark.filterwarnings("error::gradroute.UnroutedWarning"), append=False)
        params = getattr(getattr(item, "callspec", None), "params", {})
        for marker in item.iter_markers():
            if marker.name in ("supports", "refuses"):
                forms = marker.kwargs.get("forms", [params["form"]] if "form" in params else FORMS)
                shown = {"feature": marker.args[0], "outcome": marker.name, "forms": list(forms)}
                item.user_properties.append(("composition", shown))
                for form in shown["forms"]:
                    collected.setdefault((shown["feature"], form, marker.name), set()).add(item.path)


@pytest.fixture(params=FORMS)
def form(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def routed(form: str) -> Routed:
    return Routed(form)


@pytest.fixture(autouse=True)
def reproducible() -> Iterator[None]:
    """One thread, so that two test workers do not fight for two cores, and sums run in one order; no trainer's bf16."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    forget_the_last_trainer()
