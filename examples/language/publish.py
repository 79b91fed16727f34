"""What the documentation shows of the results."""

import json
from pathlib import Path
from typing import Any

from common.files import replacing, write_text
from common.readme import write_parts
from language.table import sections

README = Path(__file__).parent / "README.md"
ASSETS = Path(__file__).parents[2] / "docs" / "assets" / "language"


def publish(results: dict[str, Any], folder: Path) -> None:
    """Write the README's parts, and copy the figure, the page and the numbers into the documentation."""
    write_parts(README, sections(results))
    for name in ("relearning.png", "page.html"):
        with replacing(ASSETS / name) as temporary:
            temporary.write_bytes((folder / name).read_bytes())
    write_text(ASSETS / "results.json", json.dumps(_rounded(results)) + "\n")


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, 6)
    if isinstance(value, dict):
        return {key: _rounded(each) for key, each in value.items()}
    return [_rounded(each) for each in value] if isinstance(value, list) else value
