"""A measured number in README and documentation is one of a generated table that its page has or links to,
rounded to the digits shown.
"""

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
    ("audit.md", "95 %"),  # of intervals
    ("benchmarks.md", "95 %"),  # of the bootstrap interval
}


#: Between marks, of which a page takes what is named: ``--8<-- "examples/mnist_vae/README.md:table"``.
MARKED = re.compile(r"\[start:\w+\] -->\n(.*?)<!-- --8<-- \[end:", re.S)
TAKEN = re.compile(r'^--8<-- "([\w/.]+\.md)', re.M)
LINK = re.compile(r"\]\(([\w/.]+\.md)")


def rows(generated: Path) -> str:
    """The tables of a file that benchmarks or examples write: the whole file, or what is between marks in a README."""
    text = generated.read_text(encoding="utf-8")
    parts = MARKED.findall(text) if generated.name == "README.md" else [text]
    return "\n".join(line for part in parts for line in part.splitlines() if line.startswith("|"))


def sources(page: Path) -> set[Path]:
    """The files that a page takes tables from, and those that the pages have to which it links."""
    linked = {(page.parent / link).resolve() for link in LINK.findall(page.read_text(encoding="utf-8"))}
    taken = [TAKEN.findall(each.read_text(encoding="utf-8")) for each in (page, *linked)]
    files = linked | {ROOT / name for names in taken for name in names}
    return {file for file in files if file.parent.name == "benchmarks" or file.parent.parent.name == "examples"}


def tables(page: Path) -> str:
    return "\n".join(rows(source) for source in sorted(sources(page)))


def numbers(text: str) -> Iterator[tuple[str, str]]:
    for digits, unit in NUMBER.findall(text):
        yield digits.replace(",", ""), UNITS[unit]


def prose(page: Path) -> str:
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.S | re.M)
    return re.sub(r"`[^`]*`|<[^>]*>", "", text)


def is_measured(digits: str, unit: str, measured: set[tuple[str, str]]) -> bool:
    places = len(digits.partition(".")[2])
    return any(unit == of and f"{float(value):.{places}f}" == digits for value, of in measured)


@pytest.mark.parametrize("page", SOURCES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_measured_number_is_in_a_table_that_the_page_has_or_links_to(page: Path) -> None:
    measured = set(numbers(tables(page)))
    unknown = [
        f"{digits} {unit}"
        for digits, unit in numbers(prose(page))
        if not is_measured(digits, unit, measured) and (page.name, f"{digits} {unit}") not in SAID
    ]
    assert not unknown


def test_there_are_tables_and_numbers_to_compare() -> None:
    assert sources(ROOT / "README.md") == {ROOT / "benchmarks" / "measured.md", *ROOT.glob("examples/*/README.md")}
    of_audit = {ROOT / "benchmarks" / "measured.md", ROOT / "examples" / "mnist_vae" / "README.md"}
    assert sources(DOCS / "how_to" / "audit.md") == of_audit
    assert len(set(numbers(tables(ROOT / "README.md")))) > 100
    assert list(numbers(prose(ROOT / "README.md")))
    assert list(numbers(prose(DOCS / "explanation" / "absorption.md")))


def test_a_number_that_no_table_has_is_seen() -> None:
    measured = {("1.474", "x"), ("99.04", "%")}
    assert is_measured("1.47", "x", measured)
    assert is_measured("99", "%", measured)
    assert not is_measured("1.48", "x", measured)
    assert not is_measured("1.47", "%", measured)
