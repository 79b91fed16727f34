"""What the documentation shows of the results."""

import json
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from common.figures import save
from common.files import read_json, replacing, write_text
from common.readme import rounded, write_parts
from mnist_unlearning import figures
from mnist_unlearning.table import FIRST, SECOND, legend, markdown, uses_labels

README = Path(__file__).parent / "README.md"
ASSETS = Path(__file__).parents[2] / "docs" / "assets" / "mnist_unlearning"


def sections(results: dict[str, Any]) -> dict[str, str]:
    """Parts of the README that are made from ``results.json``, by their names."""
    rows = results["rows"]
    return {
        "rows": legend(rows),
        "table": markdown(rows, FIRST),
        "more": markdown(rows, SECOND),
        "made": made(results),
    }


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


def drawn(results: dict[str, Any]) -> dict[str, Figure]:
    """The figures of ``results.json``, by the names of their files; none where no row has labels."""
    rows = results["rows"]
    if not any(uses_labels(row) for row in rows):
        return {}
    title = titled(results)
    return {"fractions.png": figures.by_fraction(rows, title), "relearning.png": figures.relearning(rows, title)}


def titled(results: dict[str, Any]) -> str:
    """What table and figures are about, in a line."""
    seeds = results["rows"][0]["seeds"]
    return f"MNIST, digit {results['digit']}, seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}"


def redraw() -> None:
    """Make the README's parts and the figures again, from the numbers that the documentation holds."""
    results = read_json(ASSETS / "results.json")
    write_parts(README, sections(results))
    for name, figure in drawn(results).items():
        save(figure, ASSETS / name)


def publish(results: dict[str, Any], folder: Path) -> None:
    """Write the README's parts, and copy the figures and the numbers into the documentation."""
    write_parts(README, sections(results))
    for name in ("fractions.png", "relearning.png"):
        with replacing(ASSETS / name) as temporary:
            temporary.write_bytes((folder / name).read_bytes())
    write_text(ASSETS / "results.json", json.dumps(rounded(results)) + "\n")
