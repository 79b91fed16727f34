"""A run in a few lines of text."""

from typing import Any

from mnist_vae.errors import ExampleError
from mnist_vae.files import read_json
from mnist_vae.run import Run


def report(run: Run) -> str:
    """A table of what was found, and the files that the run has written."""
    if not run.metrics.is_file():
        raise ExampleError(f"{run.folder} has no {run.metrics.name}. Run `evaluate` with the same --out first.")
    metrics: dict[str, Any] = read_json(run.metrics)
    try:
        rows = _rows(metrics)
    except KeyError as error:
        raise ExampleError(f"{run.metrics} lacks {error}. Run `evaluate` again to write it anew.") from error
    width = max(len(name) for name, _ in rows)
    lines = [f"  {name:<{width}}  {value}" for name, value in rows]
    files = [f"  {path}  ({_size(path.stat().st_size)})" for path in run.files()]
    return "\n".join(["", *lines, "", "files", *files])


def _rows(metrics: dict[str, Any]) -> list[tuple[str, str]]:
    matrix = metrics["mean_activation"]
    own = [row[digit] for digit, row in enumerate(matrix)]
    return [
        ("dataset", metrics["dataset"]),
        ("recipe", f"{metrics['recipe']}{'' if metrics['routing'] else ', without routing'}"),
        ("seed, epochs", f"{metrics['seed']}, {metrics['epochs']}"),
        ("training", f"{metrics['train_seconds']:.0f} s on {metrics['threads']} threads"),
        ("argmax accuracy", f"{metrics['argmax_accuracy']:.2%} of test images have their digit's mean as the largest"),
        ("owned digits", f"{metrics['owned_digits']} of {len(matrix)}"),
        ("own activation", f"{min(own):.2f} to {max(own):.2f}, mean of a digit on its own dimension"),
        ("test SSE", f"{metrics['test_sse']:.2f} per image"),
        ("test ELBO", f"{metrics['test_elbo']:.2f} nats per image"),
    ]


def _size(count: int) -> str:
    return f"{count / 1e6:.1f} MB" if count >= 1e6 else f"{count / 1e3:.1f} kB"
