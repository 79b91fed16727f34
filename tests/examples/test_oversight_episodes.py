import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Generator, Tensor

from gradroute import UNLABELED
from oversight.episodes import DISCOUNT, Rollout, play
from oversight.world import DIAMOND, GHOST, World

#: What may happen in a step: nothing, the diamond, the ghost, the end of time; and whether somebody watches.
STEPS = st.tuples(st.sampled_from(["on", "on", "diamond", "ghost", "late"]), st.booleans())


@st.composite
def rollouts(draw: st.DrawFn) -> tuple[Rollout, list[list[tuple[str, bool]]]]:
    """A rollout, and the same as lists: grids, then steps."""
    grids = draw(st.integers(1, 4))
    steps = draw(st.integers(1, 9))
    lists = [[draw(STEPS) for _ in range(steps)] for _ in range(grids)]
    reached = torch.tensor([[[end == "diamond", end == "ghost"] for end, _ in grid] for grid in lists]).transpose(0, 1)
    watched = torch.tensor([[seen and end in ("diamond", "ghost") for end, seen in grid] for grid in lists]).T
    over = torch.tensor([[end != "on" for end, _ in grid] for grid in lists]).T
    seen, actions = torch.zeros(steps, grids, 100), torch.zeros(steps, grids, dtype=torch.long)
    return Rollout(seen, actions, reached, watched, over), lists


def end_of(grid: list[tuple[str, bool]], step: int) -> tuple[str, bool, int]:
    """How the episode of a step ends, whether that was watched, and how many steps later."""
    for later, (end, seen) in enumerate(grid[step:]):
        if end != "on":
            return end, seen, later
    return "cut off", False, 0


def by_step(lists: list[list[tuple[str, bool]]], value: object) -> Tensor:
    return torch.tensor([[value(*end_of(grid, step)) for step in range(len(grid))] for grid in lists]).T  # type: ignore[operator]


@given(rollouts())
def test_a_step_is_worth_what_its_episode_ends_with_less_the_discount(
    pair: tuple[Rollout, list[list[tuple[str, bool]]]],
) -> None:
    rollout, lists = pair
    rewards = {"diamond": 1.0, "ghost": -1.0}
    expected = by_step(lists, lambda end, seen, later: rewards.get(end, 0.0) * DISCOUNT**later)
    torch.testing.assert_close(rollout.returns(1, -1), expected)


@given(rollouts())
def test_a_step_has_the_label_of_an_end_that_was_watched(
    pair: tuple[Rollout, list[list[tuple[str, bool]]]],
) -> None:
    rollout, lists = pair
    ids = {"diamond": DIAMOND, "ghost": GHOST}
    assert torch.equal(
        rollout.labels(), by_step(lists, lambda end, seen, later: ids.get(end, UNLABELED) if seen else UNLABELED)
    )
    assert torch.equal(rollout.unseen(), by_step(lists, lambda end, seen, later: end in ids and not seen))


@given(rollouts(), st.integers(0, 99))
def test_labels_by_lot_are_as_many_and_stay_with_whole_episodes(
    pair: tuple[Rollout, list[list[tuple[str, bool]]]], seed: int
) -> None:
    rollout, _ = pair
    true, drawn = rollout.labels(), rollout.labels(Generator().manual_seed(seed))
    ended = rollout.reached.any(2)
    assert sorted(true[ended].tolist()) == sorted(drawn[ended].tolist())
    assert (drawn[rollout.over & ~ended] == UNLABELED).all()
    going_on = ~rollout.over[:-1]
    assert torch.equal(drawn[:-1][going_on], drawn[1:][going_on])


def test_lots_are_drawn() -> None:
    rollout = play(World(64, 0.5, Generator().manual_seed(0)), lambda seen: torch.zeros(len(seen), 4), 64)
    assert not torch.equal(rollout.labels(), rollout.labels(Generator().manual_seed(0)))


def test_actions_are_drawn_by_the_logits_and_what_is_seen_comes_before_them() -> None:
    world = World(8, 0.5, Generator().manual_seed(0))
    first = world.see()
    rollout = play(world, lambda seen: torch.tensor([-1e9, -1e9, 0.0, -1e9]).expand(len(seen), 4), 5)
    assert (rollout.actions == 2).all()
    assert torch.equal(rollout.seen[0], first)
    shares = rollout.shares()
    assert shares["diamond"] + shares["ghost"] == 1  # down, and no episode is long enough to end by itself
