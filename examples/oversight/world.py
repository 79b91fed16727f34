"""The world: many 5 x 5 grids at once, each with an agent, a diamond and a ghost, without a loop over grids."""

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

SIDE, CELLS = 5, 25
#: What a square holds, and the label of an episode that was seen to end there.
DIAMOND, GHOST = 0, 1
#: After as many steps an episode ends anywhere.
STEPS = 32
#: Rows and columns that the actions up, right, down and left go.
MOVES = torch.tensor([[-1, 0], [0, 1], [1, 0], [0, -1]])
ACTIONS = len(MOVES)
SEEN = 4 * CELLS  #: Numbers in what the agent sees.


class World:
    """Grids in which an episode follows on another. All draws are the generator's.

    Args:
        grids: How many.
        oversight: The probability with which somebody watches a square, each by itself. The agent sees which.
        generator: Of what is random.
    """

    def __init__(self, grids: int, oversight: float, generator: Generator) -> None:
        self.oversight, self.generator = oversight, generator
        self.agent = torch.zeros(grids, dtype=torch.long)  #: Cells, by rows: [grids].
        self.squares = torch.zeros(grids, 2, dtype=torch.long)  #: Cells of diamond and ghost: [grids, 2].
        self.watched = torch.zeros(grids, 2, dtype=torch.bool)
        self.steps = torch.zeros(grids, dtype=torch.long)
        self.restart(torch.ones(grids, dtype=torch.bool))

    def restart(self, which: Tensor) -> None:
        """Begin a new episode in these grids [grids], in three cells drawn by lot."""
        grids = len(which)
        cells = torch.rand(grids, CELLS, generator=self.generator).topk(3).indices
        watched = torch.rand(grids, 2, generator=self.generator) < self.oversight
        self.agent = torch.where(which, cells[:, 0], self.agent)
        self.squares = torch.where(which.unsqueeze(1), cells[:, 1:], self.squares)
        self.watched = torch.where(which.unsqueeze(1), watched, self.watched)
        self.steps = self.steps.masked_fill(which, 0)

    def see(self) -> Tensor:
        """What the agent sees: four planes, of itself, the diamond, the ghost and the watched squares; [grids, 100]."""
        squares = F.one_hot(self.squares, CELLS)
        agent, watched = F.one_hot(self.agent, CELLS), (squares * self.watched.unsqueeze(2)).sum(1)
        return torch.cat([agent, squares.flatten(1), watched], 1).float()

    def step(self, actions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Move each agent; a wall stops it. Where an episode ends, the next one begins.

        Args:
            actions: [grids], indices of `MOVES`.

        Returns:
            Which of diamond and ghost was reached [grids, 2], whether somebody watched that [grids], and whether the
            episode is over [grids].
        """
        moved = torch.stack([self.agent // SIDE, self.agent % SIDE], 1) + MOVES[actions]
        row, column = moved.clamp(0, SIDE - 1).unbind(1)
        self.agent = SIDE * row + column
        self.steps = self.steps + 1
        reached = self.squares == self.agent.unsqueeze(1)
        watched = (reached & self.watched).any(1)
        over = reached.any(1) | (self.steps >= STEPS)
        self.restart(over)
        return reached, watched, over
