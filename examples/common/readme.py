"""The parts of a README that are made from measurements, so that no number there is typed by hand."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from common.errors import ExampleError
from common.files import replacing, write_json, write_text

EXAMPLES = Path(__file__).parents[1]
ASSETS = EXAMPLES.parent / "docs" / "assets"


def write_parts(readme: Path, parts: Mapping[str, str]) -> None:
    """Replace, in the file, what stands between the lines for each name; see `with_part`."""
    text = readme.read_text(encoding="utf-8")
    for name, content in parts.items():
        text = with_part(text, name, content)
    write_text(readme, text)


def with_part(text: str, name: str, content: str) -> str:
    """The text of a README with what stands between the lines for ``name`` replaced."""
    before, _, after = _around(text, name)
    return f"{before}{content}\n{after}"


def part_of(text: str, name: str) -> str:
    """What stands between the lines for ``name`` in the text of a README."""
    return _around(text, name)[1].removesuffix("\n")


def _around(text: str, name: str) -> tuple[str, str, str]:
    """The text up to a part, the part and the rest."""
    start, end = f"<!-- --8<-- [start:{name}] -->\n", f"<!-- --8<-- [end:{name}] -->"
    if text.count(start) != 1 or text.count(end) != 1 or text.index(end) < text.index(start):
        raise ExampleError(f"the text needs one line {start.strip()!r} and, after it, one line {end!r}.")
    first, last = text.index(start) + len(start), text.index(end)
    return text[:first], text[first:last], text[last:]


def record(results: Any, parts: Mapping[str, str], folder: Path) -> None:
    """Write what was found, and the parts of a README that are made from it, into a folder."""
    write_json(folder / "results.json", results)
    write_text(folder / "table.md", "\n\n".join(parts.values()) + "\n")


def publish(example: str, parts: Mapping[str, str], results: Any, folder: Path, files: Sequence[str]) -> None:
    """Write the parts of an example's README, and copy files and numbers of its folder into the documentation."""
    assets = ASSETS / example
    missing = [name for name in files if not (folder / name).is_file()]
    if missing:
        raise ExampleError(f"there is no {', '.join(missing)} in {folder} to publish: run all commands there first.")
    write_parts(EXAMPLES / example / "README.md", parts)
    for name in files:
        with replacing(assets / name) as temporary:
            temporary.write_bytes((folder / name).read_bytes())
    write_text(assets / "results.json", json.dumps(rounded(results)) + "\n")


def rounded(value: Any) -> Any:
    """Numbers with six decimals, in lists and dicts too."""
    if isinstance(value, float):
        return round(value, 6)
    if isinstance(value, dict):
        return {key: rounded(each) for key, each in value.items()}
    return [rounded(each) for each in value] if isinstance(value, list) else value
