"""What a claim is made of, and the command line that all claims share."""

import argparse
import json
import os
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import NoReturn

import torch

from environment import environment
from measure import Spread
from settings import THREADS, Settings

HOLDS, FAILS, QUICK = "holds", "FAILS", "quick: no verdict"


@dataclass(frozen=True)
class Check:
    """One measured value and the rule that it must keep. Without a rule it is for information only."""

    what: str
    value: Spread
    rule: str = ""
    holds: bool = True
    unit: str = "x"

    def __str__(self) -> str:
        value = self.value
        verdict = f"{'ok' if self.holds else 'FAILS'}: {self.rule}" if self.rule else "for information"
        text = f"  {self.what}: {number(value.median)} {self.unit}, {verdict}"
        if value.low != value.high:
            surely = f"median surely in {number(value.surely_above)} to {number(value.surely_below)}"
            text += f"  [rounds {number(value.low)} to {number(value.high)}; {surely}]"
        return text


@dataclass(frozen=True)
class Outcome:
    """The checks of a claim; rows for tables, where there are any; and why it was not run, where it was not."""

    checks: list[Check] = field(default_factory=list)
    rows: list[dict[str, object]] = field(default_factory=list)
    not_run: str = ""


def at_most(what: str, value: Spread, limit: float, unit: str = "x") -> Check:
    return Check(what, value, f"at most {number(limit)}", value.median <= limit, unit)


def at_least(what: str, value: Spread, limit: float, unit: str = "x") -> Check:
    return Check(what, value, f"at least {number(limit)}", value.median >= limit, unit)


def not_measurable(what: str, ratio: Spread) -> Check:
    """Single rounds do not agree on which side is the slower one."""
    return Check(what, ratio, "10th percentile at most 1", ratio.low <= 1)


def note(what: str, value: Spread, unit: str = "x") -> Check:
    return Check(what, value, unit=unit)


def main(claim: str | None, measure: Callable[[Settings], Outcome]) -> NoReturn:
    """Measure, print, write JSON where asked to, and exit with 1 if the claim does not hold."""
    parser = argparse.ArgumentParser(description=claim, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="see that it runs, in seconds; gives no verdict")
    parser.add_argument("--json", type=Path, metavar="PATH", help="also write the result there")
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"), help="cpu (default) or cuda")
    arguments = parser.parse_args()
    torch.set_num_threads(min(THREADS, os.cpu_count() or 1))
    torch.manual_seed(0)
    if os.getloadavg()[0] > THREADS + 1:  # as many as the benchmarks before this one leave behind, and one more
        print(f"warning: other work keeps {os.getloadavg()[0]:.1f} threads busy, and will distort what is measured")
    outcome = measure(Settings(arguments.device, arguments.quick))
    verdict = _verdict(outcome, arguments.quick)
    print((claim or "").strip(), *outcome.checks, f"-> {verdict}", sep="\n", flush=True)
    if arguments.json:
        result = {"claim": claim, "verdict": verdict, **asdict(outcome), "environment": environment(arguments.device)}
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(result, indent=1))
    sys.exit(verdict == FAILS)


def _verdict(outcome: Outcome, quick: bool) -> str:
    if outcome.not_run:
        return f"not run: {outcome.not_run}"
    if quick:
        return QUICK
    return HOLDS if all(check.holds for check in outcome.checks) else FAILS


def number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
