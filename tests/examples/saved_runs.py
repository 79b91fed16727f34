"""Which runs an example has saved, and when: what was trained twice has another time."""

from pathlib import Path


def saved_runs(out: Path) -> dict[str, int]:
    """The files of the runs in an example's folder, with the time, in ns, at which each was written last."""
    return {each.name: each.stat().st_mtime_ns for each in (out / "runs").iterdir()}
