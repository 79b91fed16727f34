"""The measurements as Markdown, for the docs."""

from typing import Any

from claims import QUICK, number

Result = dict[str, Any]


def markdown(results: dict[str, Result]) -> str:
    """The table of claims, and below it the grid where it was measured."""
    environment = next(iter(results.values()))["environment"]
    parts = [_environment(environment), _claims(results)]
    rows = [row for result in results.values() for row in result["rows"]]
    return "\n\n".join([*parts, *([_grid(rows)] if rows else [])]) + "\n"


def _environment(environment: dict[str, Any]) -> str:
    names = ("cpu", "device", "threads", "torch", "python", "system", "gradroute", "commit", "date")
    return "Measured with " + ", ".join(f"{name} {environment[name]}" for name in names) + "."


def _claims(results: dict[str, Result]) -> str:
    lines = ["| claim | measured | margin | |", "| --- | --- | --- | --- |"]
    for result in results.values():
        sentence = result["claim"].strip().splitlines()[0]
        lines.append(f"| **{sentence}** | | | {result['verdict']} |")
        for check in result["checks"]:
            value = check["value"]
            measured = f"{number(value['median'])} {check['unit']}"
            if value["low"] != value["high"]:
                measured += f" ({number(value['low'])} to {number(value['high'])})"
            judged = check["rule"] and result["verdict"] != QUICK
            verdict = ("yes" if check["holds"] else "**no**") if judged else ""
            lines.append(f"| {check['what']} | {measured} | {check['rule'] or 'for information'} | {verdict} |")
    return "\n".join(lines)


def _grid(rows: list[dict[str, Any]]) -> str:
    """One line for each way to route a case: eager and compiled side by side."""
    cells: dict[tuple[str, ...], dict[str, str]] = {}
    for row in rows:
        time = row["time"]
        spread = "" if time["low"] == time["high"] else f" ({number(time['low'])} to {number(time['high'])})"
        text = f"{number(time['median'])}{spread} | {number(row['saved'])} | {number(row['peak'])}"
        cells.setdefault((row["shape"], row["dtype"], row["routing"]), {})[row["mode"]] = text
    columns = ("time / gradroute", "saved", "peak")
    head = " | ".join(f"{mode}: {column}" for mode in ("eager", "compiled") for column in columns)
    lines = [f"| shape | dtype | routing | {head} |", "| --- " * 9 + "|"]
    nothing = " | | "
    for key, modes in cells.items():
        shown = (modes.get(mode, nothing) for mode in ("eager", "compiled"))
        lines.append("| " + " | ".join([*key, *shown]) + " |")
    return "\n".join(lines)
