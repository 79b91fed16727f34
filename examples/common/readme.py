"""The parts of a README that are made from measurements, so that no number there is typed by hand."""

from collections.abc import Mapping
from pathlib import Path

from common.errors import ExampleError
from common.files import write_text


def write_parts(readme: Path, parts: Mapping[str, str]) -> None:
    """Replace, in the file, what stands between the lines for each name; see `with_part`."""
    text = readme.read_text(encoding="utf-8")
    for name, content in parts.items():
        text = with_part(text, name, content)
    write_text(readme, text)


def with_part(text: str, name: str, content: str) -> str:
    """The text of a README with what stands between the lines for ``name`` replaced."""
    start, end = f"<!-- --8<-- [start:{name}] -->\n", f"<!-- --8<-- [end:{name}] -->"
    if text.count(start) != 1 or text.count(end) != 1 or text.index(end) < text.index(start):
        raise ExampleError(f"the text needs one line {start.strip()!r} and, after it, one line {end!r}.")
    before, rest = text.split(start)
    return f"{before}{start}{content}\n{end}{rest.split(end)[1]}"
