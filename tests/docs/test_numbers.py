"""A measured number in README and documentation is one that a generated table has, rounded to the digits shown."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from docs.pages import DOCS, ROOT, SOURCES

#: What is measured has one of these units. The names that the tables have for them come last.
UNITS = {"%": "%", "x": "x", "times": "x", "µs": "us", "us": "us", "microseconds": "us"}
NUMBER = re.compile(rf"(?<![\w.⟨-])(\d[\d,]*(?:\.\d+)?) ?({'|'.join(UNITS)})(?!\w)")
#: Not in a table: an aim, a setting, or what was measured after the table was made.
SAID = {
    ("benchmarks.md", "10 us"),  # the aim that was missed
    ("benchmarks.md", "95 %"),  # of the bootstrap interval
}


def tables() -> str:
    """All that benchmarks and examples write: whole files, and parts of a README between marks."""
    parts = [path.read_text(encoding="utf-8") for path in ROOT.glob("benchmarks/*.md")]
    for readme in ROOT.glob("examples/*/README.md"):
        parts += re.findall(r"\[start:\w+\] -->\n(.*?)<!-- --8<-- \[end:", readme.read_text(encoding="utf-8"), re.S)
    return "\n".join(line for part in parts for line in part.splitlines() if line.startswith("|"))


def numbers(text: str) -> Iterator[tuple[str, str]]:
    for digits, unit in NUMBER.findall(text):
        yield digits.replace(",", ""), UNITS[unit]


def prose(page: Path) -> str:
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.S | re.M)
    return re.sub(r"`[^`]*`", "", text)


def is_measured(digits: str, unit: str, measured: set[tuple[str, str]]) -> bool:
    places = len(digits.partition(".")[2])
    return any(unit == of and f"{float(value):.{places}f}" == digits for value, of in measured)


@pytest.mark.parametrize("page", SOURCES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_measured_number_is_one_of_a_generated_table(page: Path) -> None:
    measured = set(numbers(tables()))
    unknown = [
        f"{digits} {unit}"
        for digits, unit in numbers(prose(page))
        if not is_measured(digits, unit, measured) and (page.name, f"{digits} {unit}") not in SAID
    ]
    assert not unknown


def test_there_are_tables_and_numbers_to_compare() -> None:
    assert len(set(numbers(tables()))) > 100
    assert list(numbers(prose(ROOT / "README.md")))
    assert list(numbers(prose(DOCS / "explanation" / "absorption.md")))


def test_a_number_that_no_table_has_is_seen() -> None:
    measured = {("1.474", "x"), ("99.04", "%")}
    assert is_measured("1.47", "x", measured)
    assert is_measured("99", "%", measured)
    assert not is_measured("1.48", "x", measured)
    assert not is_measured("1.47", "%", measured)
