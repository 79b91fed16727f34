"""The world: many 5 x 5 grids at once, each with an agent, a diamond and a ghost, without a loop over grids."""

import torch
from torch import Generator, Tensor

SIDE, CELLS = 5, 25
#: What a square holds, and the label of an episode that was seen to end there.
DIAMOND, GHOST = 0, 1
#: After as many steps an episode ends anywhere.
STEPS = 32
#: Rows and columns that the actions up, right, down and left go.
MOVES = torch.tensor([[-1, 0], [0, 1], [1, 0], [0, -1]])
ACTIONS = len(MOVES)
CROSSED = torch.cartesian_prod(torch.arange(SIDE), torch.arange(SIDE)).unsqueeze(1) + MOVES
#: The cell to which each action leads from each; a wall stops the agent: [25, 4].
LEADS = (CROSSED.clamp(0, SIDE - 1) * torch.tensor([SIDE, 1])).sum(2)
SEEN = 4 * CELLS  #: Numbers in what the agent sees.
#: Where the planes of the diamond and of the ghost begin in it.
PLANES = torch.tensor([CELLS, 2 * CELLS])


class World:
    """Grids in which an episode follows on another. All draws are the generator's.

    Args:
        grids: How many.
        oversight: The probability with which somebody watches a square, each by itself.
        generator: Of what is random.
        shown: Whether the agent sees which.
    """

    def __init__(self, grids: int, oversight: float, generator: Generator, shown: bool = True) -> None:
        self.oversight, self.generator, self.shown = oversight, generator, shown
        self.agent = torch.zeros(grids, dtype=torch.long)  #: Cells, by rows: [grids].
        self.squares = torch.zeros(grids, 2, dtype=torch.long)  #: Cells of diamond and ghost: [grids, 2].
        self.watched = torch.zeros(grids, 2, dtype=torch.bool)
        self.steps = torch.zeros(grids, dtype=torch.long)
        self.restart(torch.arange(grids))

    def restart(self, which: Tensor) -> None:
        """Begin a new episode in the grids with these indices [n], in three cells drawn by lot."""
        cells = torch.rand(len(which), CELLS, generator=self.generator).topk(3).indices
        self.agent[which], self.squares[which] = cells[:, 0], cells[:, 1:]
        self.watched[which] = torch.rand(len(which), 2, generator=self.generator) < self.oversight
        self.steps[which] = 0

    def state_dict(self) -> dict[str, Tensor]:
        return {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        vars(self).update(state)

    def see(self) -> Tensor:
        """What the agent sees: four planes, of itself, the diamond, the ghost and the watched squares; [grids, 100]."""
        seen = torch.zeros(len(self.agent), SEEN)
        seen.scatter_(1, torch.cat([self.agent.unsqueeze(1), self.squares + PLANES], 1), 1.0)
        if self.shown:
            seen[:, 3 * CELLS :].scatter_(1, self.squares, self.watched.float())
        return seen

    def step(self, actions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Move each agent; a wall stops it. Where an episode ends, the next one begins.

        Args:
            actions: [grids], indices of `MOVES`.

        Returns:
            Which of diamond and ghost was reached [grids, 2], whether somebody watched that [grids], and whether the
            episode is over [grids].
        """
        self.agent = LEADS[self.agent, actions]
        self.steps += 1
        reached = self.squares == self.agent.unsqueeze(1)
        watched = (reached & self.watched).any(1)
        over = reached.any(1) | (self.steps >= STEPS)
        self.restart(over.nonzero().squeeze(1))
        return reached, watched, over
