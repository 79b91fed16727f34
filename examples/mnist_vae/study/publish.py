"""Put what was measured into the README and the documentation, so that no number there is typed by hand."""

from collections.abc import Sequence
from pathlib import Path

from common import tables
from common.datasets import Split
from common.figures import save
from common.readme import part_of, write_parts
from mnist_vae.run import Run
from mnist_vae.study import curves
from mnist_vae.study.compare import Control, controls, finished, legend, markdown, read, summaries
from mnist_vae.study.figures import beside
from mnist_vae.study.report import table
from mnist_vae.study.tradeoff import WIDE_ROWS, tradeoff

HERE = Path(__file__).resolve().parents[1]
README = HERE / "README.md"
PRETRAINED = HERE / "pretrained"
FIGURES = HERE.parents[1] / "docs" / "assets" / "mnist_vae"
#: Of each table of controls: its rows, and the folder of their runs.
TABLES: dict[str, tuple[Sequence[Control], str]] = {
    "compare": (controls("mnist", "quick", None), "compare"),
    "fashion": (controls("fashion-mnist", "quick", None), "compare-fashion-mnist"),
    "wide": ([row for row in tradeoff("mnist", 8) if row.name in WIDE_ROWS], "wide"),
    "tradeoff": (tradeoff("mnist", 1), "tradeoff"),
}


def publish(runs: Path, readme: Path = README, figures: Path = FIGURES) -> None:
    """Write into each table of the README the rows of these runs, and draw the figures of the tables.

    Rows of which there is no run stay as they are.

    Args:
        runs: The folder with the runs: ``default/seedN``, and those of ``compare`` and ``tradeoff`` as they name them.
        readme: Its tables stand between lines ``<!-- --8<-- [start:NAME] -->`` and ``[end:NAME]``.
        figures: Where the pictures go.
    """
    text = readme.read_text(encoding="utf-8")
    default = _runs(runs, "default/seed*") + _runs(runs, "compare/routed-seed*")
    parts = {"table": merged(part_of(text, "table"), table(default), ("recipe", "seed"))}
    for name, (rows, folder) in TABLES.items():
        order = [row.name for row in rows]
        found = summaries(rows, runs / folder)
        for part, made in ((name, markdown(found)), (f"{name}_rows", legend(found))):
            parts[part] = merged(part_of(text, part), made, ("run",), order)
    write_parts(readme, parts)
    print(f"publish: wrote what {runs} has of {len(parts)} tables into {readme}")
    draw(readme, figures)


def draw(readme: Path = README, figures: Path = FIGURES) -> None:
    """Draw the figures of the README's tables."""
    text = readme.read_text(encoding="utf-8")
    compared, traded = (read(TABLES[name][0], part_of(text, name)) for name in ("compare", "tradeoff"))
    pictures = {
        "compare": curves.scatter(compared, "MNIST, recipe quick"),
        "compare_labels": curves.label_fractions(compared, "MNIST, recipe quick"),
        "tradeoff": curves.lines(traded, "MNIST, 1 epoch"),
    }
    for name, picture in pictures.items():
        save(picture, figures / f"{name}.png")
    print(f"publish: drew {len(pictures)} figures into {figures}")


def merged(old: str, new: str, keys: Sequence[str], order: Sequence[str] | None = None) -> str:
    """A table with its rows, and in place of those with the same keys the new ones.

    Args:
        old: The table that there is.
        new: With the same headings.
        keys: Headings that tell a row from all others.
        order: Of the first key: other rows are left out. Without it, rows are sorted by the keys.
    """
    rows = {tuple(row[key] for key in keys): list(row.values()) for text in (old, new) for row in tables.read(text)}
    known = sorted(rows) if order is None else [(name,) for name in order if (name,) in rows]
    return tables.markdown(list(tables.read(old)[0]), [rows[key] for key in known])


def draw_original(runs: Path, images: Split, figures: Path = FIGURES) -> Path | None:
    """Draw the original's model, of the least seed that has run to its end, below the models that come along.

    Returns:
        The picture; None where there is no such run.
    """
    control = next(row for row in TABLES["compare"][0] if row.name == "original")
    found = finished(control, runs / TABLES["compare"][1])
    if not found:
        return None
    models = {
        "Ten numbers (default recipe)": Run(PRETRAINED / "ten").load_model(),
        "Digit and style (recipe wide)": Run(PRETRAINED / "wide").load_model(),
        f"The original, {control.config.epochs} epochs": found[min(found)].load_model(),
    }
    path = figures / "original.png"
    save(beside(models, images), path)
    print(f"publish: drew {path}")
    return path


def _runs(folder: Path, pattern: str) -> list[Run]:
    return [Run(path) for path in sorted(folder.glob(pattern))]
