"""Tables in Markdown, as the README shows them, and their places in it."""

from collections.abc import Sequence
from typing import Any

from mnist_vae.errors import ExampleError


def markdown(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table whose columns are aligned in the text, too."""
    widths = [max(len(cells[column]) for cells in [headings, *rows]) for column in range(len(headings))]
    table = [headings, ["-" * width for width in widths], *rows]
    return "\n".join(
        f"| {' | '.join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True))} |" for cells in table
    )


def with_part(text: str, name: str, content: str) -> str:
    """The text of a README with what stands between the lines for ``name`` replaced."""
    start, end = f"<!-- --8<-- [start:{name}] -->\n", f"<!-- --8<-- [end:{name}] -->"
    if text.count(start) != 1 or text.count(end) != 1 or text.index(end) < text.index(start):
        raise ExampleError(f"the text needs one line {start.strip()!r} and, after it, one line {end!r}.")
    before, rest = text.split(start)
    return f"{before}{start}{content}\n{end}{rest.split(end)[1]}"


#: Of `of_run`.
RUN_HEADINGS = [
    "recipe",
    "seed",
    "epochs",
    "training",
    "argmax accuracy",
    "owned digits",
    "sliders",
    "test SSE",
    "test ELBO",
]


def of_run(found: dict[str, Any]) -> list[str]:
    """An evaluated run's row, from its ``metrics.json``."""
    name = found["recipe"] if found["routing"] else f"{found['recipe']}, not routed"
    return [
        name if found["dataset"] == "mnist" else f"{name}, {found['dataset']}",
        str(found["seed"]),
        str(found["epochs"]),
        f"{found['train_seconds']:.0f} s",
        f"{found['argmax_accuracy']:.2%}",
        str(found["owned_digits"]),
        sliders(found),
        f"{found['test_sse']:.1f}",
        f"{found['test_elbo']:.1f}",
    ]


def sliders(found: dict[str, Any]) -> str:
    """How many of the decoded sliders the independent classifier recognises."""
    seen: list[list[int]] = found["slider_seen_as"]
    right = sum(answer == digit for digit, answers in enumerate(seen) for answer in answers)
    return f"{right} of {sum(map(len, seen))}"
