"""An evaluated run in a few lines of text, and several runs as a table."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from common.errors import ExampleError
from common.files import read_json
from common.tables import markdown
from mnist_vae.run import Run

#: Of `table`.
HEADINGS = [
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


def report(run: Run) -> str:
    """A table of what was found, and the files that the run has written."""
    with _complete(run):
        rows = _rows(_metrics(run))
    width = max(len(name) for name, _ in rows)
    lines = [f"  {name:<{width}}  {value}" for name, value in rows]
    files = [f"  {path}  ({_size(path.stat().st_size)})" for path in run.files()]
    return "\n".join(["", *lines, "", "files", *files])


def table(runs: Sequence[Run]) -> str:
    """One row for each run."""
    found = []
    for run in runs:
        with _complete(run):
            found.append(_row(_metrics(run)))
    return markdown(HEADINGS, found)


def _metrics(run: Run) -> dict[str, Any]:
    if not run.metrics.is_file():
        raise ExampleError(f"{run.folder} has no {run.metrics.name}. Run `evaluate` with the same --out first.")
    metrics: dict[str, Any] = read_json(run.metrics)
    return metrics


@contextmanager
def _complete(run: Run) -> Iterator[None]:
    """Turn a metric that an older version did not write into an error that says what to do."""
    try:
        yield
    except KeyError as error:
        raise ExampleError(f"{run.metrics} lacks {error}. Run `evaluate` again to write it anew.") from error


def _rows(metrics: dict[str, Any]) -> list[tuple[str, str]]:
    matrix = metrics["mean_activation"]
    own = [row[digit] for digit, row in enumerate(matrix)]
    return [
        ("dataset", metrics["dataset"]),
        ("recipe", f"{metrics['recipe']}{'' if metrics['routing'] else ', without routing'}"),
        ("seed, epochs", f"{metrics['seed']}, {metrics['epochs']}"),
        ("training", f"{metrics['train_seconds']:.0f} s on {metrics['threads']} threads"),
        ("argmax accuracy", f"{metrics['argmax_accuracy']:.2%} of test images speak loudest of their digit"),
        ("best permutation", f"{metrics['best_permutation_accuracy']:.2%} once dimensions are renamed in the best way"),
        ("linear probe", f"{metrics['probe_accuracy']:.2%} of test images"),
        ("owned digits", f"{metrics['owned_digits']} of {len(matrix)}"),
        ("sliders", _sliders(metrics)),
        ("around the route", _leaks(metrics["leaks"])),
        ("own activation", f"{min(own):.2f} to {max(own):.2f}, mean of a digit on its own dimension"),
        ("test SSE", f"{metrics['test_sse']:.2f} per image"),
        ("test ELBO", f"{metrics['test_elbo']:.2f} nats per image"),
    ]


def _leaks(leaks: dict[str, float] | None) -> str:
    if leaks is None:
        return "not audited: no route at the latent alone"
    found = ", ".join(f"{kind} {share:.1%}" for kind, share in leaks.items())
    return f"{found} of a digit's gradient, at most" if found else "nothing"


def _sliders(metrics: dict[str, Any]) -> str:
    strengths, seen = metrics["slider_strengths"], metrics["slider_seen_as"]
    wrong = [
        f"{strength:g} on {digit} as {found}"
        for digit, row in enumerate(seen)
        for strength, found in zip(strengths, row, strict=True)
        if found != digit
    ]
    text = f"{_recognised(metrics)} are recognised by a classifier of {metrics['classifier_accuracy']:.2%}"
    return f"{text}; not {', '.join(wrong)}" if wrong else text


def _row(found: dict[str, Any]) -> list[str]:
    """An evaluated run's row, from its ``metrics.json``."""
    name = found["recipe"] if found["routing"] else f"{found['recipe']}, not routed"
    return [
        name if found["dataset"] == "mnist" else f"{name}, {found['dataset']}",
        str(found["seed"]),
        str(found["epochs"]),
        f"{found['train_seconds']:.0f} s",
        f"{found['argmax_accuracy']:.2%}",
        str(found["owned_digits"]),
        _recognised(found),
        f"{found['test_sse']:.1f}",
        f"{found['test_elbo']:.1f}",
    ]


def _recognised(found: dict[str, Any]) -> str:
    """How many of the decoded sliders the independent classifier recognises."""
    seen: list[list[int]] = found["slider_seen_as"]
    right = sum(answer == digit for digit, answers in enumerate(seen) for answer in answers)
    return f"{right} of {sum(map(len, seen))}"


def _size(count: int) -> str:
    return f"{count / 1e6:.1f} MB" if count >= 1e6 else f"{count / 1e3:.1f} kB"
