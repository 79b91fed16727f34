"""A pytest plugin that writes the table of what composes with routing, from the outcomes of the tests."""

from __future__ import annotations

import json
import platform
from pathlib import Path
from typing import Any

import pytest
import torch

from composition.forms import FORMS

TITLES = {"functional": "`gr.route`", "router": "`Router`", "routed_module": "`RoutedModule`"}
CELLS = {"supports": "yes", "refuses": "raises", "fails": "**fails**", None: "not applicable"}

Outcomes = dict[str, dict[str, str]]  # feature -> form -> supports | refuses | fails


class SupportTable:
    """Collects what each test showed; at the end merges it with the runs under other versions of torch, and writes.

    The data lie in a JSON file beside the table, one entry a version, so that the table can say since when.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.data_path = path.with_suffix(".json")
        self.shown: Outcomes = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        # A passing set-up or teardown shows nothing, a failing one that the feature fails.
        if report.passed and report.when != "call":
            return
        for name, shown in report.user_properties:
            if name == "composition" and not report.skipped:
                self._note(shown, passed=report.passed)

    def _note(self, shown: dict[str, Any], *, passed: bool) -> None:
        outcome = shown["outcome"] if passed else "fails"
        row = self.shown.setdefault(shown["feature"], {})
        for form in shown["forms"]:
            if row.get(form, outcome) == outcome:
                row[form] = outcome
            else:  # one failing test is enough; of tests that support and tests that refuse, the error is the news
                row[form] = "fails" if "fails" in (row[form], outcome) else "refuses"

    def pytest_sessionfinish(self) -> None:
        runs = json.loads(self.data_path.read_text()) if self.data_path.exists() else {}
        runs[torch.__version__.partition("+")[0]] = self.shown
        self.data_path.write_text(json.dumps(runs, indent=1, sort_keys=True) + "\n")
        self.path.write_text(markdown(runs))


def markdown(runs: dict[str, Outcomes]) -> str:
    """The table of the newest version, and for each feature the oldest version that does the same."""
    versions = sorted(runs, key=_version, reverse=True)
    newest = runs[versions[0]]
    lines = [
        f"| feature | {' | '.join(TITLES[form] for form in FORMS)} | the same since torch |",
        f"| --- |{' --- |' * (len(FORMS) + 1)}",
    ]
    for feature in sorted(newest):
        since = versions[0]
        for version in versions:
            if runs[version].get(feature) != newest[feature]:
                break
            since = version
        cells = [CELLS[newest[feature].get(form)] for form in FORMS]
        lines.append(f"| {feature} | {' | '.join(cells)} | {since} |")
    tested = ", ".join(reversed(versions))
    lines += ["", f"Written by `tests/composition`, run on {platform.system()}, CPU, under torch {tested}."]
    return "\n".join(lines) + "\n"


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(".")[:3] if part.isdigit())
