"""A page on which one sees it: the same grids, played by the policy in training and by the steered one."""

from pathlib import Path
from typing import Any

from torch import Generator, nn

from common.files import fill_page
from oversight.episodes import play
from oversight.world import STEPS, World

TEMPLATE = Path(__file__).parent / "page.html"
#: Episodes on the page, and what is added to a run's seed to draw them.
EPISODES, SHOWN = 60, 1_500_000_007


def episodes(policy: nn.Module, oversight: float, seed: int) -> list[dict[str, Any]]:
    """The first episode of each of some grids, drawn by lot: what is where, and the agent's cells."""
    world = World(EPISODES, oversight, Generator().manual_seed(SHOWN + seed))
    starts = [world.agent.tolist(), world.squares.tolist(), world.watched.tolist()]
    # One forward pass more than an episode has steps shows where the last one leads; a new episode begins there.
    rollout = play(world, policy, STEPS)
    shown = []
    for grid, (agent, squares, watched) in enumerate(zip(*starts, strict=True)):
        length = int(rollout.over[:, grid].int().argmax()) + 1
        path = rollout.seen[:length, grid, :25].argmax(1).tolist()
        reached = rollout.reached[length - 1, grid].tolist()
        end = squares[reached.index(True)] if any(reached) else path[-1]
        shown.append({"start": agent, "squares": squares, "watched": watched, "path": [*path, end], "reached": reached})
    return shown


def write_page(policies: dict[str, nn.Module], oversight: float, seed: int, path: Path) -> None:
    """One file of HTML that asks nobody for anything."""
    played = {name: episodes(policies[name], oversight, seed) for name in ("training", "steered")}
    fill_page(TEMPLATE, {"oversight": oversight, **played}, path)
