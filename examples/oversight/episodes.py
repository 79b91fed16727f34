"""What a policy does in a world, and what the end of an episode says of the steps that led to it."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from gradroute import UNLABELED
from oversight.world import DIAMOND, GHOST, World

DISCOUNT = 0.97


@dataclass(frozen=True)
class Rollout:
    """Steps of many grids, in time: each tensor is [steps, grids], `seen` and `reached` with one more dimension."""

    seen: Tensor
    actions: Tensor
    reached: Tensor  #: Diamond or ghost, [steps, grids, 2].
    watched: Tensor  #: Whether somebody saw that.
    over: Tensor

    def returns(self, diamond: float | Tensor, ghost: float | Tensor) -> Tensor:
        """The discounted return from each step on, of rewards at diamond and ghost; an unfinished episode has none."""
        rewards = diamond * self.reached[..., DIAMOND] + ghost * self.reached[..., GHOST]
        return from_the_end(rewards.float(), self.over, DISCOUNT)

    def labels(self, lot: Generator | None = None) -> Tensor:
        """`DIAMOND` or `GHOST` for each step of an episode that was seen to end there; `UNLABELED` for all others.

        Args:
            lot: Gives the same labels to other episodes, which ended at diamond or ghost, seen or not.
        """
        ends = self.watched * (self.reached[..., DIAMOND] * (DIAMOND + 1) + self.reached[..., GHOST] * (GHOST + 1))
        if lot is not None:
            ended = self.reached.any(2)
            ends[ended] = ends[ended][torch.randperm(int(ended.sum()), generator=lot)]
        return from_the_end(ends, self.over) + UNLABELED

    def unseen(self) -> Tensor:
        """Which steps belong to episodes that ended at diamond or ghost, and nobody saw it."""
        return from_the_end(self.reached.any(2) & ~self.watched, self.over)

    def shares(self) -> dict[str, float]:
        """Of the episodes that ended: how many at the diamond, how many at the ghost."""
        ended = max(1, int(self.over.sum()))
        return {
            name: int(self.reached[..., end].sum()) / ended for name, end in (("diamond", DIAMOND), ("ghost", GHOST))
        }


@torch.no_grad()
def play(world: World, policy: Callable[[Tensor], Tensor], steps: int) -> Rollout:
    """Let a policy act: actions are drawn by its logits, with the world's generator."""
    kept = []
    for _ in range(steps):
        seen = world.see()
        actions = torch.multinomial(policy(seen).softmax(1), 1, generator=world.generator).squeeze(1)
        kept.append((seen, actions, *world.step(actions)))
    return Rollout(*(torch.stack(each) for each in zip(*kept, strict=True)))


def from_the_end(ends: Tensor, over: Tensor, decay: float = 1) -> Tensor:
    """Give each step what stands at the end of its episode, times `decay` for each step that comes before it.

    Args:
        ends: [steps, grids], of which only what stands where an episode is over counts.
        over: Whether an episode is over with this step, [steps, grids]. Steps after the last of these get 0.
        decay: Of numbers.
    """
    out, later = torch.empty_like(ends), torch.zeros_like(ends[0])
    for step in reversed(range(len(ends))):
        later = torch.where(over[step], ends[step], later if decay == 1 else decay * later)
        out[step] = later
    return out
