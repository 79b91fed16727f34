"""The rows of the table, in their order."""

from collections.abc import Sequence
from dataclasses import replace

from common.tables import check_rows
from mnist_unlearning.config import Condition

FRACTIONS = (1.0, 0.5, 0.1)

#: The row that quality is compared with.
TWIN = "unrouted"
#: What the one figure by label fraction shows, and `--quick` trains.
MAIN = (TWIN, "filtered", "filtered-detected", "placebo", "activations-plain", "activations", "parameters")


def conditions(fractions: Sequence[float] = FRACTIONS) -> list[Condition]:
    """All rows: two that know no labels, then the same set for each fraction of labels."""
    twin = Condition(TWIN, "an unrouted twin; the same block ablated")
    rows = [
        twin,
        replace(twin, name="unrouted-row", what="the twin; the digit's output row set to 0", forgets_by="row"),
    ]
    for fraction in fractions:
        rows += at_fraction(fraction)
    return rows


def at_fraction(fraction: float) -> list[Condition]:
    """The rows for one fraction of labels. What routes differs from the row "parameters" in what its text says."""
    filtered = Condition(
        "filtered", "trained without what is labeled `forget`", filtered="labeled", forgets_by="nothing"
    )
    routed = Condition(
        "parameters",
        "see above: both ends of the block learn by route",
        level="parameters",
        retain="ablated",
        labeled_first=True,
    )
    rows = [
        filtered,
        replace(routed, name="placebo", what="as `parameters`, with labels drawn by lot", labels="random"),
        routed,
        replace(
            routed,
            name="parameters-whole",
            what="as `parameters`, but the base learns with the block at work",
            retain="whole",
        ),
        replace(
            routed,
            name="parameters-together",
            what="as `parameters`, but in one pass, `retain` teaching base and block",
            retain="together",
        ),
        replace(
            routed,
            name="parameters-separate",
            what="as `parameters`, with a step of the optimizer for each pass",
            optimizer="separate",
        ),
        replace(
            routed,
            name="parameters-isolated",
            what="as `parameters-separate`, each step under isolation",
            optimizer="isolated",
        ),
        replace(
            routed,
            name="activations",
            what="as `parameters`, but at level activations: readers are free",
            level="activations",
        ),
        replace(
            routed,
            name="activations-whole",
            what="as `activations`, but the base learns with the block at work",
            level="activations",
            retain="whole",
        ),
        Condition(
            "activations-plain",
            "level activations, one pass: `forget` teaches the block, all else both",
            level="activations",
        ),
    ]
    if fraction < 1:
        rows[1:1] = [
            replace(
                filtered,
                name="filtered-detected",
                what="trained without that and without what a detector suspects",
                filtered="detected",
            ),
            replace(
                filtered,
                name="filtered-unverified",
                what="trained on what is labeled `retain` alone",
                filtered="unverified",
            ),
        ]
        rows.append(
            replace(
                routed,
                name="parameters-mixed",
                what="as `parameters`, but labeled images do not come first",
                labeled_first=False,
            )
        )
    return [replace(row, name=f"{row.name}-{fraction:g}", fraction=fraction) for row in rows]


def base_name(row: Condition) -> str:
    """A row's name without the fraction."""
    return row.name.removesuffix(f"-{row.fraction:g}")


def chosen(rows: Sequence[Condition], names: Sequence[str]) -> list[Condition]:
    """The rows with these names, with or without the fraction, and the twin; all where none is given.

    Raises:
        ExampleError: There is no such row.
    """
    check_rows(names, [row.name for row in rows], also=map(base_name, rows))
    return [row for row in rows if not names or row.name in {TWIN, *names} or base_name(row) in names]
