"""Put what was measured into the README and the documentation, so that no number there is typed by hand."""

import shutil
from collections.abc import Callable
from pathlib import Path

from common.readme import write_parts
from mnist_vae.run import Run
from mnist_vae.study.compare import Control, controls, markdown, summaries
from mnist_vae.study.report import table
from mnist_vae.study.tradeoff import WIDE_ROWS, tradeoff

HERE = Path(__file__).resolve().parents[1]
README = HERE / "README.md"
FIGURES = HERE.parents[1] / "docs" / "assets" / "mnist_vae"


def publish(runs: Path, readme: Path = README, figures: Path = FIGURES) -> None:
    """Write each table into its place in the README, and copy the figures.

    Args:
        runs: The folder with the runs: ``default/seedN``, and those of ``compare`` and ``tradeoff`` as they name them.
        readme: Its tables stand between lines ``<!-- --8<-- [start:NAME] -->`` and ``[end:NAME]``.
        figures: Where the pictures go.
    """
    tables: dict[str, Callable[[], str]] = {
        "table": lambda: table(_runs(runs, "default/seed*") + _runs(runs, "compare/routed-seed*")),
        "compare": lambda: _summary(controls("mnist", "quick", None, 13), runs / "compare"),
        "fashion": lambda: _summary(controls("fashion-mnist", "quick", None, 13), runs / "compare-fashion-mnist"),
        "wide": lambda: _summary([row for row in tradeoff("mnist", 8) if row.name in WIDE_ROWS], runs / "wide"),
        "tradeoff": lambda: _summary(tradeoff("mnist", 1), runs / "tradeoff"),
    }
    write_parts(readme, {name: make() for name, make in tables.items()})
    pictures = [runs / "compare" / "compare.png", runs / "compare" / "compare_labels.png"]
    pictures.append(runs / "tradeoff" / "tradeoff.png")
    for path in pictures:
        shutil.copyfile(path, figures / path.name)
    print(f"publish: wrote {len(tables)} tables into {readme} and {len(pictures)} figures into {figures}")


def _runs(folder: Path, pattern: str) -> list[Run]:
    return [Run(path) for path in sorted(folder.glob(pattern))]


def _summary(rows: list[Control], folder: Path) -> str:
    return markdown(summaries(rows, folder))
