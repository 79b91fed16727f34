"""The results as tables: medians over seeds, and the range where there is one."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import mean, median
from typing import Any

from common import tables
from common.curves import reached
from topics.config import CORE, MODULES, ROUTED, ROWS, SUBSETS, TOPICS, TWIN
from topics.measure import RELEARNING, key, subsets

Losses = Mapping[str, float]  #: By topic.
#: What was found with one seed: of each row, losses by what its models are without.
Found = Mapping[str, Mapping[str, Losses]]


def by_seed(models: Sequence[dict[str, Any]]) -> Mapping[int, Found]:
    """The losses of all models that were trained."""
    seeds: dict[int, dict[str, dict[str, Losses]]] = {}
    for each in models:
        seeds.setdefault(each["seed"], {}).setdefault(each["name"], {}).update(each["losses"])
    return seeds


def without(models: Sequence[dict[str, Any]], row: str, out: str) -> list[Losses]:
    """Of each seed, the losses of a row's model that is without this, if there is one."""
    return [found[row][out] for found in by_seed(models).values() if out in found.get(row, {})]


def compute_table(models: Sequence[dict[str, Any]]) -> str:
    """After which part of the twin's training it was as good as each row: on what stays, and on what is gone."""
    curves = {each["seed"]: each["curve"] for each in models if each["name"] == TWIN.name}

    def part(curve: Sequence[tuple[int, Losses]], losses: Losses, topics: Iterable[str]) -> float:
        parts = [reached([(step, at[topic]) for step, at in curve], losses[topic]) for topic in topics]
        return mean(parts) / curve[-1][0]

    def columns(found: Found, curve: Any, row: str) -> list[float] | None:
        of_row = found.get(row, {})
        if any(key(subset) not in of_row for subset in SUBSETS):
            return None
        single = [(subset[0], of_row[key(subset)]) for subset in SUBSETS if len(subset) == 1]
        return [
            mean(part(curve, losses, [CORE]) for _, losses in single),
            mean(part(curve, losses, [each for each in MODULES if each != out]) for out, losses in single),
            mean(part(curve, losses, [out]) for out, losses in single),
            part(curve, of_row[key(MODULES)], [CORE]),
            part(curve, of_row[key(MODULES)], MODULES),
        ]

    lines = []
    for row, trainings in ROWS.items():
        seeds = [(found, curves[seed]) for seed, found in by_seed(models).items() if seed in curves]
        values = [each for found, curve in seeds if (each := columns(found, curve, row)) is not None]
        if values:
            cells = [_percent(column) for column in zip(*values, strict=True)]
            lines.append([f"`{row}`", str(len(trainings)), str(len(values)), *cells])
    headings = ["core, %", "kept topics, %", "the one that is gone, %", "core without all, %", "all that are gone, %"]
    return tables.markdown(["run", "trainings", "seeds", *headings], lines)


def topic_table(models: Sequence[dict[str, Any]]) -> str:
    """Losses on each topic: with it, and by how each row is without it."""
    places = [(TWIN.name, False), (ROUTED.name, False), *((row, True) for row in ROWS if row != TWIN.name)]
    lines = [
        [topic, *(_losses([each[topic] for each in without(models, row, topic if out else "")]) for row, out in places)]
        for topic in MODULES
    ]
    headings = [f"`{row}`" for row in ROWS if row != TWIN.name]
    return tables.markdown(["topic", f"`{TWIN.name}`", f"`{ROUTED.name}`, whole", *headings], lines)


def relearning_table(models: Sequence[dict[str, Any]]) -> str:
    """Losses on each topic after some steps on it, by how each row is without it."""

    def cell(row: str, topic: str, number: int) -> str:
        found = [each["relearning"] for each in models if each["name"] == row]
        return _losses([each[topic][number] for each in found if topic in each])

    places = [(topic, number) for topic in MODULES for number, steps in enumerate(RELEARNING) if steps]
    lines = [[topic, str(RELEARNING[number]), *(cell(row, topic, number) for row in ROWS)] for topic, number in places]
    return tables.markdown(["topic", "steps", *(f"`{row}`" for row in ROWS)], lines)


def subset_table(models: Sequence[dict[str, Any]]) -> str:
    """How much the routed model's losses rise with each number of modules that is taken out."""
    wholes = [found[ROUTED.name] for found in by_seed(models).values() if ROUTED.name in found]

    def cell(size: int, topics: Callable[[tuple[str, ...]], Sequence[str]]) -> str:
        those = [subset for subset in subsets() if len(subset) == size and topics(subset)]
        return _percent(
            [
                mean(losses[key(subset)][topic] / losses[""][topic] - 1 for topic in topics(subset))
                for losses in wholes
                for subset in those
            ],
            "{:+.1f}",
        )

    columns: dict[str, Callable[[tuple[str, ...]], Sequence[str]]] = {
        "core, %": lambda subset: [CORE],
        "kept topics, %": lambda subset: [each for each in MODULES if each not in subset],
        "topics that are gone, %": lambda subset: subset,
    }
    lines = []
    for size in range(1, len(MODULES) + 1):
        ways = sum(len(subset) == size for subset in subsets())
        lines.append([str(size), str(ways), *(cell(size, topics) for topics in columns.values())])
    return tables.markdown(["modules taken out", "ways", *columns], lines)


def detector_table(models: Sequence[dict[str, Any]]) -> str:
    """How often a detector that was trained on the labels errs."""
    found = [each["errors"] for each in models if each["name"] == ROUTED.name]

    def cell(topic: str, kind: str) -> str:
        return _percent([each[topic][kind] / each[topic]["sequences"] for each in found], "{:.1f}")

    lines = [[topic, cell(topic, "missed"), cell(topic, "wrong")] for topic in TOPICS]
    return tables.markdown(["topic", "missed, % of all", "others taken for it, % of all"], lines)


def sections(results: dict[str, Any]) -> dict[str, str]:
    """Parts of the README that are made from ``results.json``, by their names."""
    models = results["models"]
    return {
        "rows": tables.legend({"name": each["name"], "what": each["what"]} for each in models),
        "compute": compute_table(models),
        "topics": topic_table(models),
        "subsets": subset_table(models),
        "relearning": relearning_table(models),
        "detector": detector_table(models),
        "made": made(results),
    }


def made(results: dict[str, Any]) -> str:
    """How the tables were made, and how long that took."""
    settings, machine, models = results["settings"], results["machine"], results["models"]
    seeds = sorted({each["seed"] for each in models})
    minutes: dict[str, dict[int, float]] = {}
    for each in models:
        of_row = minutes.setdefault(each["name"], {})
        of_row[each["seed"]] = of_row.get(each["seed"], 0) + each["cpu_seconds"] / 60
    each_row = ", ".join(f"{median(of_row.values()):.1f} for `{row}`" for row, of_row in minutes.items())
    return (
        f"{len(models)} trainings of {settings['steps']} steps of {settings['batch_size']} times {settings['context']} "
        f"tokens, seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}, with {settings['labeled']:.0%} of "
        f"each topic labeled. CPU minutes of training, a seed: {each_row}; on {machine['cores']} shared cores, with "
        f"torch {machine['torch']}."
    )


def _percent(values: Sequence[float], form: str = "{:.0f}") -> str:
    return tables.median_and_range([100 * value for value in values], form) if values else ""


def _losses(values: Sequence[float]) -> str:
    return tables.median_and_range(values, "{:.3f}") if values else ""
