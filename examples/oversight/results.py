"""What was found, as tables and a picture: medians over seeds, and the range where there is one."""

from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure

from common import curves, tables
from common.figures import ACCENT, INK, MUTED, SMALL, WARM, WIDTH, legend_below, plain
from oversight.runs import Job

#: The routed run with its gate set to the ghost expert, which needs no run of its own.
WRONG = ("steered-wrongly", "`routed`, with its gate set to the ghost expert")
#: Of each value: its heading, and how it is printed.
COLUMNS = {
    "return": ("true return", "{:.2f}"),
    "equal": ("after as many episodes", "{:.2f}"),
    "training": ("of the policy in training", "{:.2f}"),
    "gain": ("gained by steering", "{:.2f}"),
    "diamond": ("ends at the diamond", "{:.0%}"),
    "ghost": ("at the ghost", "{:.0%}"),
    "episodes": ("episodes", "{:.0f}"),
}
#: Numbers of updates at which the way is shown.
SHOWN = (100, 200, 300, 400, 500, 700, 1000, 1500, 2000, 3000, 5000, 10000)
#: Of each row: colour and style of its line.
LINES = {
    "routed": {"color": ACCENT, "linestyle": "-"},
    WRONG[0]: {"color": ACCENT, "linestyle": ":"},
    "penalty": {"color": WARM, "linestyle": "-"},
    "filtered": {"color": WARM, "linestyle": "--"},
    "placebo": {"color": MUTED, "linestyle": "-"},
    "no-gate": {"color": "#6aa84f", "linestyle": "--"},
    "unrouted": {"color": MUTED, "linestyle": ":"},
    "oracle": {"color": INK, "linestyle": "--"},
}

Row = dict[str, Any]


def summarise(jobs: Sequence[Job], measured: curves.Curves, updates: int) -> list[Row]:
    """A row for each probability of oversight and condition; of each column a list of values, one for each seed.

    They are those after so many updates; the curves are as long as each run.
    """
    runs = []
    for job, curve in zip(jobs, measured, strict=True):
        last = next(at for at in curve if at["updates"] == updates)
        chance, shown = job.settings.oversight, [(job.condition.name, job.condition.what, "steered")]
        for name, what, policy in shown + [(*WRONG, "ghost")] * (job.condition.name == "routed"):
            values = {
                **{"seeds": job.seed, "cpu_seconds": curve[-1]["cpu_seconds"], "episodes": last["episodes"]},
                "training": last["training"]["return"],
                "gain": last[policy]["return"] - last["training"]["return"],
                **last[policy],
                "curves": [{"updates": at["updates"], "episodes": at["episodes"], **at[policy]} for at in curve],
            }
            runs.append(({"name": name, "what": what, "oversight": chance}, values))
    rows = tables.gather(runs)
    for row in rows:
        beside = [each for each in rows if each["oversight"] == row["oversight"]]
        least = min(count for each in beside for count in each["episodes"])
        points = [[at for at in curve if at["episodes"] <= least] or curve[:1] for curve in row["curves"]]
        row["equal"], row["updates"] = [each[-1]["return"] for each in points], updates
    return sorted(rows, key=lambda row: float(row["oversight"]))  # stable


def markdown(rows: Sequence[Row]) -> str:
    """The table of results."""
    columns = COLUMNS.items()
    lines = [
        [*_name(row), str(len(row["seeds"])), *(tables.median_and_range(row[key], form) for key, (_, form) in columns)]
        for row in rows
    ]
    return tables.markdown(["overseen", "run", "seeds", *(heading for _, (heading, _) in columns)], lines)


def later(rows: Sequence[Row]) -> str:
    """True returns on the way, as medians over seeds; with how many seeds have come so far, where not all have."""
    updates = sorted({at["updates"] for row in rows for curve in row["curves"] for at in curve}.intersection(SHOWN))
    lines = [[*_name(row), *curves.stops(row["curves"], "updates", "return", updates)] for row in rows]
    return tables.markdown(["overseen", "run", *map(str, updates)], lines)


def _name(row: Row) -> list[str]:
    return [f"{row['oversight']:.0%}", f"`{row['name']}`"]


def removals(found: Sequence[Row]) -> str:
    """How often agents tampered and how often they solved their task, before and after an expert was removed."""
    if not found:
        return "Not run so far."
    lines = []
    for name in dict.fromkeys(each["name"] for each in found):
        of_row = [each for each in found if each["name"] == name]
        rates = [[each[when][end] for each in of_row] for end in ("ghost", "diamond") for when in ("before", "after")]
        cells = [tables.median_and_range(each, "{:.0%}") for each in rates]
        lines.append([f"`{name}`", str(len(of_row)), *cells])
    return tables.markdown(["run", "seeds", "hacked, before", "after", "solved, before", "after"], lines)


def sections(results: dict[str, Any]) -> dict[str, str]:
    """Parts of the README that are made from ``results.json``, by their names."""
    rows, machine = results["rows"], results["machine"]
    seconds = [value for row in rows if row["name"] != WRONG[0] for value in row["cpu_seconds"]]
    return {
        "rows": tables.legend(rows),
        "table": markdown(rows),
        "later": later(rows),
        "tampering": removals(results["tampering"]),
        "made": f"The table is of {rows[0]['updates']} updates. {len(seconds)} runs, each on one thread: "
        f"{sum(seconds) / 60:.0f} minutes of CPU time, besides judging. The machine has {machine['cores']} cores and "
        f"torch {machine['torch']}.",
    }


def figure(rows: Sequence[Row]) -> Figure:
    """A panel for each probability of oversight; medians over seeds, and their range."""
    chances = sorted({row["oversight"] for row in rows})
    drawn = Figure(figsize=(WIDTH, 1.2 + 1.9 * len(chances)), layout="constrained")
    panels = drawn.subplots(len(chances), 1, sharex=True, sharey=True, squeeze=False)
    for axes, chance in zip(panels.flat, chances, strict=True):
        for row in [each for each in rows if each["oversight"] == chance]:
            curves.draw(axes, row["curves"], "updates", "return", label=row["name"], **LINES[row["name"]])
        axes.set_title(f"overseen: {chance:.0%}", fontsize=SMALL, loc="left")
        plain(axes, grid="y")
    axes.set_xlabel("updates; lines are medians over seeds, bands their range", fontsize=SMALL)
    legend_below(drawn, columns=3)
    return drawn
