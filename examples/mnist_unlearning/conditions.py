"""The rows of the table, in their order."""

from collections.abc import Sequence
from dataclasses import replace

from mnist_unlearning.config import Condition
from mnist_vae.errors import ExampleError

FRACTIONS = (1.0, 0.5, 0.1)

#: What the one figure by label fraction shows, and `--quick` trains.
MAIN = ("unrouted", "filtered", "filtered-detected", "placebo", "activations-plain", "activations", "parameters")


def conditions(fractions: Sequence[float] = FRACTIONS) -> list[Condition]:
    """All rows: two that know no labels, then the same set for each fraction of labels."""
    twin = Condition("unrouted", "an unrouted twin; the same block ablated")
    rows = [twin, replace(twin, name="unrouted-row", what="the twin; its output row set to 0", forgets_by="row")]
    for fraction in fractions:
        rows += at_fraction(fraction)
    return rows


def at_fraction(fraction: float) -> list[Condition]:
    """The rows for one fraction of labels. All that routes differs from the row "parameters" in what its text says."""
    filtered = Condition("filtered", "trained without what is labeled", filtered="labeled", forgets_by="nothing")
    routed = Condition(
        "parameters",
        "writers and readers of the block learn by route",
        level="parameters",
        ablated_steps=True,
        labeled_first=True,
    )
    rows = [
        filtered,
        replace(routed, name="placebo", what="the same with labels drawn by lot", labels="random"),
        Condition("activations-plain", "activations by route, nothing else", level="activations"),
        replace(routed, name="activations", what="activations by route, readers free", level="activations"),
        routed,
        replace(routed, name="parameters-no-ablated", what="without ablated-forward steps", ablated_steps=False),
        replace(routed, name="parameters-separate", what="one optimizer step a pass", optimizer="separate"),
        replace(routed, name="parameters-isolated", what="the same, under isolation", optimizer="isolated"),
    ]
    if fraction < 1:
        rows[1:1] = [
            replace(filtered, name="filtered-detected", what="and without what a detector finds", filtered="detected"),
            replace(
                filtered, name="filtered-unverified", what='on images labeled "retain" only', filtered="unverified"
            ),
        ]
        rows.append(replace(routed, name="parameters-mixed", what="labeled images not first", labeled_first=False))
    return [replace(row, name=f"{row.name}-{fraction:g}", fraction=fraction) for row in rows]


def base_name(row: Condition) -> str:
    """A row's name without the fraction."""
    return row.name.removesuffix(f"-{row.fraction:g}")


def chosen(rows: Sequence[Condition], names: Sequence[str]) -> list[Condition]:
    """The rows with these names, with or without the fraction; all where none is given.

    Raises:
        ExampleError: There is no such row.
    """
    known = {row.name for row in rows} | {base_name(row) for row in rows}
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ExampleError(f"there is no row {', '.join(unknown)}; choose from {', '.join(row.name for row in rows)}.")
    return [row for row in rows if not names or row.name in names or base_name(row) in names]
