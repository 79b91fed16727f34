"""What the documentation shows of the results."""

import json
from pathlib import Path
from typing import Any

from mnist_unlearning.table import legend, markdown
from mnist_vae.files import replacing
from mnist_vae.tables import with_part

README = Path(__file__).parent / "README.md"
ASSETS = Path(__file__).parents[2] / "docs" / "assets" / "mnist_unlearning"


def sections(results: dict[str, Any]) -> dict[str, str]:
    """Parts of the README that are made from ``results.json``, by their names."""
    return {"rows": legend(results["rows"]), "table": markdown(results["rows"]), "made": made(results)}


def made(results: dict[str, Any]) -> str:
    """How the table was made, and how long that took."""
    cpu, wall, load = (
        [value for row in results["rows"] for value in row[key]] for key in ("cpu_seconds", "seconds", "load_average")
    )
    machine = results["machine"]
    return (
        f"{len(cpu)} runs, each on one thread: {sum(cpu) / 60:.0f} minutes of CPU time, and {sum(wall) / 60:.0f} by "
        f"the clock summed over the runs, {results['workers']} of which ran at a time. The machine has "
        f"{machine['cores']} cores (load average {min(load):.1f} to {max(load):.1f} meanwhile) and torch "
        f"{machine['torch']}. A probe of the pixels themselves names {results['pixel_probe']:.1%} of the digit's "
        "images right."
    )


def publish(results: dict[str, Any], folder: Path) -> None:
    """Write the README's parts, and copy the figures and the numbers into the documentation."""
    text = README.read_text(encoding="utf-8")
    for name, content in sections(results).items():
        text = with_part(text, name, content)
    with replacing(README) as temporary:
        temporary.write_text(text, encoding="utf-8")
    for name in ("fractions.png", "relearning.png"):
        with replacing(ASSETS / name) as temporary:
            temporary.write_bytes((folder / name).read_bytes())
    with replacing(ASSETS / "results.json") as temporary:
        temporary.write_text(json.dumps(_rounded(results)) + "\n", encoding="utf-8")


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, 6)
    if isinstance(value, dict):
        return {key: _rounded(each) for key, each in value.items()}
    return [_rounded(each) for each in value] if isinstance(value, list) else value
