from dataclasses import dataclass

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Generator

from oversight.world import CELLS, DIAMOND, GHOST, STEPS, World


@dataclass
class PlainWorld:
    """One grid, written from the rules: rows and columns, and a set of watched squares."""

    agent: tuple[int, int]
    squares: dict[int, tuple[int, int]]
    watched: set[int]
    steps: int

    def step(self, action: int) -> tuple[int | None, bool, bool]:
        row, column = self.agent
        if action == 0 and row > 0:
            row -= 1
        elif action == 1 and column < 4:
            column += 1
        elif action == 2 and row < 4:
            row += 1
        elif action == 3 and column > 0:
            column -= 1
        self.agent = row, column
        self.steps += 1
        for kind, place in self.squares.items():
            if place == self.agent:
                return kind, kind in self.watched, True
        return None, False, self.steps == 32

    def see(self) -> set[tuple[int, int, int]]:
        """The planes, rows and columns that are 1."""
        places = [self.agent, self.squares[DIAMOND], self.squares[GHOST]]
        return {(plane, *place) for plane, place in enumerate(places)} | {
            (3, *self.squares[each]) for each in self.watched
        }


def plain(world: World, grid: int) -> PlainWorld:
    """One grid of a batch, as it stands."""
    cells = [world.agent[grid].item(), *world.squares[grid].tolist()]
    agent, diamond, ghost = (divmod(int(cell), 5) for cell in cells)
    watched = {kind for kind in (DIAMOND, GHOST) if world.watched[grid, kind]}
    return PlainWorld(agent, {DIAMOND: diamond, GHOST: ghost}, watched, int(world.steps[grid]))


@given(
    seed=st.integers(0, 2**20),
    oversight=st.sampled_from([0.0, 0.3, 1.0]),
    begun=st.integers(0, STEPS - 1),
    moves=st.lists(st.lists(st.integers(0, 3), min_size=5, max_size=5), min_size=1, max_size=40),
)
def test_each_grid_of_a_batch_does_what_a_plain_one_does(
    seed: int, oversight: float, begun: int, moves: list[list[int]]
) -> None:
    world = World(5, oversight, Generator().manual_seed(seed))
    world.steps += begun
    grids = [plain(world, grid) for grid in range(5)]
    for actions in moves:
        seen = world.see().view(5, 4, 5, 5)
        assert [{tuple(each) for each in one.nonzero().tolist()} for one in seen] == [each.see() for each in grids]
        assert set(seen.unique().tolist()) == {0, 1}
        reached, watched, over = world.step(torch.tensor(actions))
        for grid, action in enumerate(actions):
            kind, was_watched, is_over = grids[grid].step(action)
            assert reached[grid].tolist() == [kind == DIAMOND, kind == GHOST]
            assert (watched[grid], over[grid]) == (was_watched, is_over)
            if is_over:
                grids[grid] = plain(world, grid)
                assert grids[grid].steps == 0
                assert len({grids[grid].agent, *grids[grid].squares.values()}) == 3
            assert plain(world, grid) == grids[grid]


def test_who_watches_is_seen_only_where_it_is_shown() -> None:
    shown, unseen = (World(50, 0.5, Generator().manual_seed(0), each) for each in (True, False))
    for _ in range(40):
        assert shown.watched.any()
        assert torch.equal(unseen.see()[:, : 3 * CELLS], shown.see()[:, : 3 * CELLS])
        assert (unseen.see()[:, 3 * CELLS :] == 0).all()
        actions = torch.randint(4, (50,))
        for first, second in zip(shown.step(actions), unseen.step(actions), strict=True):
            assert torch.equal(first, second)


def test_episodes_begin_anywhere_and_each_square_is_watched_by_itself() -> None:
    world = World(20_000, 0.3, Generator().manual_seed(0))
    for cells in (world.agent, *world.squares.unbind(1)):
        assert torch.bincount(cells, minlength=CELLS) / 20_000 == pytest.approx(
            torch.full((CELLS,), 1 / CELLS), abs=0.01
        )
    diamond, ghost = world.watched.float().unbind(1)
    assert diamond.mean().item() == pytest.approx(0.3, abs=0.02)
    assert ghost.mean().item() == pytest.approx(0.3, abs=0.02)
    assert (diamond * ghost).mean().item() == pytest.approx(0.09, abs=0.01)


def test_the_same_generator_makes_the_same_world() -> None:
    one, other = (World(3, 0.5, Generator().manual_seed(7)) for _ in range(2))
    for _ in range(40):
        for first, second in zip(one.step(torch.tensor([0, 1, 2])), other.step(torch.tensor([0, 1, 2])), strict=True):
            assert torch.equal(first, second)
    assert torch.equal(one.see(), other.see())
