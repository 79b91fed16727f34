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


#: After so many seconds no more modules of a model are begun, and the table says how many were left out.
BUDGET = 120.0


def record(name: str, budget: float = BUDGET) -> dict[str, Any]:
    """What came of one model."""
    import torch

    from foreign.judge import LEVELS, outcomes
    from foreign.models import MODELS

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    start, foreign = time.perf_counter(), MODELS[name]
    modules, found = sum(1 for _ in foreign.make()[0].modules()), []
    for one in outcomes(foreign):
        found.append(one)
        if time.perf_counter() - start > budget and len(found) % len(LEVELS) == 0:
            break
    counts = {
        level: {result: sum(1 for one in found if (one.level, one.result) == (level, result)) for result in RESULTS}
        for level in LEVELS
    }
    reasons = collections.Counter(one.why for one in found if one.result == "not applicable")
    refusals = {f"{one.kind}, {one.level}": one.why for one in reversed(found) if one.result == "refused"}
    failures = [[one.module, one.kind, one.level, one.why] for one in found if one.result == "FAILED"]
    return {
        "name": name,
        "library": foreign.library,
        "modules": modules,
        "left_out": modules - len(found) // len(LEVELS),
        "counts": counts,
        "exact": {level: sum(1 for one in found if one.level == level and one.exact) for level in LEVELS},
        "not_applicable": dict(sorted(reasons.items())),
        "refusals": refusals,
        "failures": failures,
        "seconds": round(time.perf_counter() - start, 1),
    }


def table(records: list[dict[str, Any]]) -> str:
    """The table of the documentation."""
    lines = [
        "| model | modules | left out | activations: held | exact | refused | parameters: held | exact | refused "
        "| not applicable | failed |",
        "|" + " --- |" * 11,
    ]
    total: collections.Counter[int] = collections.Counter()
    for one in records:
        first, second = one["counts"]["activations"], one["counts"]["parameters"]
        cells = [
            one["modules"], one["left_out"],
            first["held"], one["exact"]["activations"], first["refused"],
            second["held"], one["exact"]["parameters"], second["refused"],
            first["not applicable"] + second["not applicable"], first["FAILED"] + second["FAILED"],
        ]  # fmt: skip
        total.update(dict(enumerate(cells)))
        # The name of a model that another library has too begins with its library's.
        name = one["name"].removeprefix(f"{one['library']} ")
        lines.append(f"| {one['library']}: `{name}` | " + " | ".join(map(str, cells)) + " |")
    lines.append(f"| **all {len(records)}** | " + " | ".join(f"**{total[i]}**" for i in range(10)) + " |")
    return "\n".join(lines) + "\n"


def main() -> int:
    """Run what is asked for, and write the table where all of them have run."""
    from foreign.models import MODELS

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", help="whose rows are made anew; all where none is given")
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    parser.add_argument("--seconds", type=float, default=BUDGET, help="when no more modules of a model are begun")
    given = parser.parse_args()
    names = given.models or list(MODELS)
    found, start = {}, time.perf_counter()
    with ProcessPoolExecutor(given.jobs) as pool:
        # The last of the list take longest, and are begun first.
        runs = {pool.submit(record, name, given.seconds): name for name in reversed(names)}
        for done in as_completed(runs):
            one = found[runs[done]] = done.result()
            left = f"{one['left_out']} of {one['modules']} modules left out, " if one["left_out"] else ""
            print(f"{len(found)}/{len(names)} {one['name']}: {left}{one['seconds']} s, {one['counts']}", flush=True)
            for key, message in one["refusals"].items():
                print("   refused", key, message)
            for module, kind, level, why in one["failures"]:
                print("   FAILED", module, kind, level, why)
    written = OUT / "table.json"
    if given.models and written.exists():
        # Their rows are made anew, and those of the others stay.
        found = {one["name"]: one for one in json.loads(written.read_text())["models"]} | found
    records = [found[name] for name in MODELS if name in found]
    if len(records) == len(MODELS):
        OUT.mkdir(parents=True, exist_ok=True)
        libraries = sorted({"torch", *(one["library"] for one in records)})
        what = {"versions": {name: version(name) for name in libraries}, "models": records}
        (OUT / "table.json").write_text(json.dumps(what, indent=1) + "\n")
        versions = ", ".join(f"{name} {number.partition('+')[0]}" for name, number in what["versions"].items())
        seconds = sum(one["seconds"] for one in records)
        (OUT / "table.md").write_text(
            f"{table(records)}\nMade with {versions}, in {seconds / 60:.0f} minutes of one core.\n"
        )
    print(f"{len(names)} models in {(time.perf_counter() - start) / 60:.1f} minutes")
    return int(any(one["failures"] for one in records))


if __name__ == "__main__":
    sys.exit(main())
