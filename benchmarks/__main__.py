"""Runs every benchmark, each in a process of its own: ``python benchmarks``. Exits with 1 if a claim does not hold."""

import argparse
import json
import subprocess
import sys
from pathlib import Path

from claims import FAILS
from table import Result, markdown

FOLDER = Path(__file__).resolve().parent
TABLE = FOLDER / "measured.md"

BENCHMARKS = (
    "backward_costs_one_multiply",
    "as_fast_as_the_fastest_exact_way",
    "faster_than_the_detach_formula",
    "nothing_but_labels_is_saved",
    "peak_memory_is_one_tensor",
    "a_training_step_costs_the_same",
    "a_training_step_holds_the_same_memory",
    "compiled_training_steps_cost_the_same",
    "flat_in_labels_linear_in_tokens",
    "cost_grows_linearly",
    "at_scale_a_site_is_counted",
    "a_thousand_sites",
    "labels_never_become_one_hot",
    "importing_costs_what_torch_does",
    "parameter_level_costs_one_layer",
    "a_held_half_costs_no_more_than_a_step",
    "a_periodic_audit_costs_one_percent",
    "no_host_synchronisation",
    "the_whole_grid",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help=f"which to run; all by default: {', '.join(BENCHMARKS)}"
    )
    parser.add_argument("--quick", action="store_true", help="see that all run, in a minute or two; gives no verdict")
    parser.add_argument("--device", default="cpu", help="cpu (default) or cuda")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks"), help="where the JSON goes")
    parser.add_argument("--docs", action="store_true", help=f"also write {TABLE.name}, which the docs show")
    arguments = parser.parse_args()
    unknown = set(arguments.names) - set(BENCHMARKS)
    if unknown:
        parser.error(f"no such benchmark: {', '.join(sorted(unknown))}")
    options = ["--device", arguments.device, *(["--quick"] if arguments.quick else [])]
    results: dict[str, Result] = {}
    crashed: list[str] = []
    for name in arguments.names or BENCHMARKS:
        print(f"== {name}", flush=True)
        path = arguments.out / f"{name}.json"
        path.unlink(missing_ok=True)  # an older result must not stand in for one that crashes
        subprocess.run([sys.executable, FOLDER / f"{name}.py", "--json", path, *options], check=False)
        if path.is_file():
            results[name] = json.loads(path.read_text())
        else:
            crashed.append(name)
    _summarise(results, crashed)
    if arguments.docs and results:
        TABLE.write_text(markdown(results))
        print(f"wrote {TABLE}")
    sys.exit(bool(crashed) or any(result["verdict"] == FAILS for result in results.values()))


def _summarise(results: dict[str, Result], crashed: list[str]) -> None:
    print("== summary")
    for name, result in results.items():
        print(f"{result['verdict']:<20} {name}")
    for name in crashed:
        print(f"{'CRASHED':<20} {name}")


if __name__ == "__main__":
    main()
