"""Controls in one table: what routing does, and what it costs.

Each control is a run of its own in a folder of its own. What is finished is neither trained nor evaluated again, so an
interrupted comparison goes on where it was, and another seed or control costs only itself.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from common import tables
from common.datasets import Dataset, DatasetName
from common.files import read_json, write_json, write_text
from mnist_vae.config import RECIPES, Config, RecipeName
from mnist_vae.evaluate import evaluate
from mnist_vae.run import Run
from mnist_vae.train import train

#: Of each key in metrics.json: its heading, and how a value is printed.
COLUMNS = {
    "argmax_accuracy": ("argmax accuracy", "{:.2%}"),
    "best_permutation_accuracy": ("best permutation", "{:.2%}"),
    "probe_accuracy": ("linear probe", "{:.2%}"),
    "owned_digits": ("owned digits", "{:.2g}"),
    "test_sse": ("test SSE", "{:.1f}"),
    "slider_accuracy": ("sliders", "{:.1%}"),
}
FRACTIONS = (1.0, 0.5, 0.1, 0.01)
#: Epochs of the original's shorter rows. Its learning rate does not depend on how many follow.
SHORT = 13


@dataclass(frozen=True)
class Control:
    """One row of the table: a config for each seed."""

    name: str
    what: str
    config: Config

    def run(self, folder: Path, seed: int) -> Run:
        return Run(folder / f"{self.name}-seed{seed}")


def controls(
    dataset: DatasetName,
    recipe: RecipeName,
    epochs: int | None,
    original_epochs: int = RECIPES["original"].epochs,
) -> list[Control]:
    """The rows, in their order. All but the original's three have the recipe's settings."""
    epochs = RECIPES[recipe].epochs if epochs is None else epochs
    base = Config(dataset, recipe, epochs=epochs)
    original = replace(base, recipe="original", epochs=original_epochs)
    short, whole = min(SHORT, original_epochs), RECIPES["original"].epochs
    part = "" if original_epochs == whole else f"of its {whole} "
    rows = [
        Control("routed", f"recipe {recipe}, {epochs} epochs", base),
        Control("unrouted", "the same without routing", replace(base, routing=False)),
        Control("placebo", "routed by fixed random labels", replace(base, labels="random")),
        Control("half-way", f"routing removed after {epochs // 2} epochs", replace(base, routed_epochs=epochs // 2)),
        Control("original", f"original recipe, {original_epochs} {part}epochs", original),
        Control("original-short", f"original recipe, stopped after {short} epochs", replace(original, epochs=short)),
        Control(
            "original-our-decoder",
            "the same with our decoder",
            replace(original, recipe="original-our-decoder", epochs=short),
        ),
    ]
    # Whether the unlabeled part helps is seen against the last of these, which leaves it out.
    for fraction in FRACTIONS[1:]:
        few = replace(base, label_fraction=fraction)
        loudest = replace(few, unlabeled="loudest", labeled_epochs=1)
        rows += [
            Control(f"labels-{fraction:g}", f"{fraction:.0%} labeled, the rest teaches all units", few),
            Control(
                f"labels-{fraction:g}-loudest", "after 1 labeled epoch, the rest teaches its loudest unit", loudest
            ),
            Control(f"labels-{fraction:g}-only", "the rest is left out", replace(few, labeled_epochs=epochs)),
        ]
    return rows


def chosen(rows: list[Control], names: Sequence[str]) -> list[Control]:
    """The rows with these names, or all where no name is given."""
    tables.check_rows(names, [row.name for row in rows])
    return [row for row in rows if not names or row.name in names]


def compare(rows: Sequence[Control], seeds: Sequence[int], data: Dataset, folder: Path) -> None:
    """Train and evaluate what is not there yet, one seed of all rows first."""
    for seed in seeds:
        for row in rows:
            print(f"compare: {row.name}, seed {seed}: {row.what}")
            finish(replace(row.config, seed=seed), data, row.run(folder, seed))


def finish(config: Config, data: Dataset, run: Run) -> None:
    """Train and evaluate a run, or leave it as it is where that is done already."""
    train(config, data.train, run)
    if not run.metrics.is_file():
        evaluate(run, data)


def summaries(rows: Sequence[Control], folder: Path) -> list[dict[str, Any]]:
    """A row of the table for each control of which the folder holds a finished run, of whatever seeds."""
    found = [(row, finished(row, folder)) for row in rows]
    return [_summary(row, runs) for row, runs in found if runs]


def finished(row: Control, folder: Path) -> dict[int, Run]:
    """The evaluated runs of the row's config, by seed."""
    runs: dict[int, Run] = {}
    for path in folder.glob(f"{row.name}-seed*"):
        run = Run(path)
        if run.metrics.is_file():
            config = run.load_config()
            if config == replace(row.config, seed=config.seed) and not config.differences(read_json(run.config)):
                runs[config.seed] = run
    return dict(sorted(runs.items()))


def _summary(row: Control, runs: dict[int, Run]) -> dict[str, Any]:
    """The row's values of each column, one per seed, in the seeds' order."""
    metrics = [read_json(run.metrics) for run in runs.values()]
    return {
        "name": row.name,
        "what": row.what,
        "epochs": row.config.epochs,
        "seeds": list(runs),
        "train_seconds": [found["train_seconds"] for found in metrics],
        **{key: [found[key] for found in metrics] for key in COLUMNS},
    }


def write(summary: Sequence[dict[str, Any]], title: str, folder: Path) -> None:
    """``compare.json`` and ``compare.md``."""
    write_json(folder / "compare.json", list(summary))
    write_text(folder / "compare.md", f"# {title}\n\n{legend(summary)}\n\n{markdown(summary)}\n")


def markdown(summary: Iterable[dict[str, Any]]) -> str:
    """The table: means over seeds, and the range where there is more than one value."""
    headings = ["run", "seeds", *(heading for heading, _ in COLUMNS.values())]
    return tables.markdown(
        headings,
        [
            [
                row["name"],
                str(len(row["seeds"])),
                *(tables.mean_and_range(row[key], form) for key, (_, form) in COLUMNS.items()),
            ]
            for row in summary
        ],
    )


def legend(summary: Iterable[dict[str, Any]]) -> str:
    """What each row is: a table of its own, since the other is wide enough."""
    return tables.markdown(["run", "what"], [[row["name"], row["what"]] for row in summary])


@dataclass(frozen=True)
class Measured:
    """A row of a table: what it is, and what was found, by the keys of `COLUMNS`; shares in percent."""

    control: Control
    found: dict[str, tables.Spread]


def read(rows: Iterable[Control], table: str) -> list[Measured]:
    """The rows that a table has of these controls, in their order: what pictures are drawn from."""
    known = {row["run"]: row for row in tables.read(table)}
    return [
        Measured(row, {key: tables.spread(known[row.name][heading]) for key, (heading, _) in COLUMNS.items()})
        for row in rows
        if row.name in known
    ]
