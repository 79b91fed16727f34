"""All modules of all foreign models as sites, and the table of what came of it: ``python -m foreign.run``."""

from __future__ import annotations

import argparse
import collections
import json
import sys
import time
import warnings
from concurrent.futures import ProcessPoolExecutor, as_completed
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
OUT = ROOT / "docs" / "assets" / "foreign"
RESULTS = ("held", "refused", "not applicable", "FAILED")


def record(name: str) -> dict[str, Any]:
    """What came of one model."""
    import torch

    from foreign.judge import outcomes
    from foreign.models import MODELS

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    start, foreign = time.perf_counter(), MODELS[name]
    found = list(outcomes(foreign))
    counts = {
        level: {result: sum(1 for one in found if (one.level, one.result) == (level, result)) for result in RESULTS}
        for level in ("activations", "parameters")
    }
    reasons = collections.Counter(one.why for one in found if one.result == "not applicable")
    refusals = {f"{one.kind}, {one.level}": one.why for one in reversed(found) if one.result == "refused"}
    failures = [[one.module, one.kind, one.level, one.why] for one in found if one.result == "FAILED"]
    return {
        "name": name,
        "library": foreign.library,
        "modules": len(found) // 2,
        "counts": counts,
        "not_applicable": dict(sorted(reasons.items())),
        "refusals": refusals,
        "failures": failures,
        "seconds": round(time.perf_counter() - start, 1),
    }


def table(records: list[dict[str, Any]]) -> str:
    """The table of the documentation."""
    lines = [
        "| model | modules | activations: held | refused | parameters: held | refused | not applicable | failed |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    total = collections.Counter()
    for one in records:
        first, second = one["counts"]["activations"], one["counts"]["parameters"]
        cells = [
            one["modules"], first["held"], first["refused"], second["held"], second["refused"],
            first["not applicable"] + second["not applicable"], first["FAILED"] + second["FAILED"],
        ]  # fmt: skip
        total.update(dict(enumerate(cells)))
        lines.append(f"| {one['library']}: `{one['name']}` | " + " | ".join(map(str, cells)) + " |")
    lines.append(f"| **all {len(records)}** | " + " | ".join(f"**{total[i]}**" for i in range(7)) + " |")
    return "\n".join(lines) + "\n"


def main() -> int:
    """Run what is asked for, and write the table where all ran."""
    from foreign.models import MODELS

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", help="their names; all of them where none is given")
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    given = parser.parse_args()
    names = given.models or list(MODELS)
    found = {}
    with ProcessPoolExecutor(given.jobs) as pool:
        runs = {pool.submit(record, name): name for name in names}
        for done in as_completed(runs):
            one = found[runs[done]] = done.result()
            print(one["name"], one["seconds"], "s", one["counts"], one["not_applicable"], flush=True)
            for key, message in one["refusals"].items():
                print("   refused", key, message)
            for module, kind, level, why in one["failures"]:
                print("   FAILED", module, kind, level, why)
    records = [found[name] for name in names]
    if not given.models:
        OUT.mkdir(parents=True, exist_ok=True)
        libraries = sorted({"torch", *(one["library"] for one in records)})
        what = {"versions": {name: version(name) for name in libraries}, "models": records}
        (OUT / "table.json").write_text(json.dumps(what, indent=1) + "\n")
        versions = ", ".join(f"{name} {number.partition('+')[0]}" for name, number in what["versions"].items())
        (OUT / "table.md").write_text(f"{table(records)}\nMade with {versions}.\n")
    return int(any(one["failures"] for one in records))


if __name__ == "__main__":
    sys.exit(main())
