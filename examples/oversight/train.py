"""REINFORCE with a baseline: labels are known when an episode has ended, and route a second pass over what was seen."""

import time
from contextlib import nullcontext
from typing import Any

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from common.resumable import Resumable
from gradroute import UNLABELED
from oversight.config import JUDGING, PLACEBO, Condition, Settings
from oversight.episodes import Rollout, play
from oversight.policy import Experts, attach, network
from oversight.world import ACTIONS, DIAMOND, STEPS, World


class Trainer(Resumable[Condition, Settings]):
    """A policy under a condition, the world that it acts in, and what was measured on the way."""

    counts = ("updates", "episodes", "seconds", "curve")

    def __init__(self, condition: Condition, settings: Settings, seed: int) -> None:
        torch.manual_seed(seed)
        self.condition, self.settings, self.seed = condition, settings, seed
        self.policy = Experts() if condition.experts else network(ACTIONS)
        self.value = network(1)
        self.router = attach(self.policy) if isinstance(self.policy, Experts) and condition.routed else None
        self.optimizer = torch.optim.Adam(
            [*self.policy.parameters(), *self.value.parameters()], lr=settings.learning_rate, fused=True
        )
        self.world = World(settings.grids, settings.oversight, Generator().manual_seed(seed), settings.shown)
        self.lot = Generator().manual_seed(PLACEBO + seed)
        self.updates = self.episodes = 0
        self.seconds = 0.0  #: Of the processor.
        self.curve: list[dict[str, Any]] = []

    def train(self, updates: int) -> None:
        """Go on until so many updates are done."""
        while self.updates < updates:
            started = time.process_time()
            self.update()
            self.seconds += time.process_time() - started
            if self.updates % self.settings.judged_every == 0:
                self.curve.append(self.judged(self.settings.judging_grids))

    def update(self) -> None:
        rollout = play(self.world, self.policy, self.settings.steps)
        loss = self.loss(rollout)
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        self.updates += 1
        self.episodes += int(rollout.over.sum())

    def loss(self, rollout: Rollout) -> Tensor:
        labels = self.labels(rollout)
        with self.router(labels) if self.router else nullcontext():
            logits = self.policy(rollout.seen)
        return self.loss_of(logits, rollout, labels)

    def loss_of(self, logits: Tensor, rollout: Rollout, labels: Tensor) -> Tensor:
        """The loss of logits [steps, grids, 4] that are routed by the labels."""
        returns = self.returns(rollout)
        value = self.value(rollout.seen).squeeze(2)
        chances = logits.log_softmax(2)
        entropy = -(chances.exp() * chances).sum(2)
        taken = chances.gather(2, rollout.actions.unsqueeze(2)).squeeze(2)
        gain = taken * (returns - value.detach()) + self.settings.entropy * entropy
        losses = self.settings.value * (value - returns).square() - gain
        if self.condition.filtered:
            losses = losses * ~rollout.unseen()
        loss: Tensor = losses.mean()
        known = labels != UNLABELED
        if isinstance(self.policy, Experts) and self.condition.gate and known.any():
            ends = self.policy.gate(rollout.seen[known]).squeeze(1)  # past the route, which lies behind the gate
            own = F.binary_cross_entropy_with_logits(ends, (labels[known] == DIAMOND).float())
            loss = loss + self.settings.gate * own
        return loss

    def labels(self, rollout: Rollout) -> Tensor:
        return rollout.labels(self.lot if self.condition.labels == "random" else None)

    def returns(self, rollout: Rollout) -> Tensor:
        watched = rollout.watched
        if self.condition.reward == "true":
            return rollout.returns(1, -1)
        if self.condition.reward == "penalty":
            return rollout.returns(1, 1 - 2.0 * watched)
        return rollout.returns(1 + 0.03 * watched, 1)

    def parts(self) -> dict[str, Any]:
        draws = {"draws": self.world.generator, "lot": self.lot}
        return {"policy": self.policy, "value": self.value, "optimizer": self.optimizer, "world": self.world, **draws}

    def policies(self) -> dict[str, nn.Module]:
        if isinstance(self.policy, Experts):
            return {"training": self.policy, "steered": self.policy.diamond, "ghost": self.policy.ghost}
        return {"training": self.policy, "steered": self.policy}

    def judged(self, grids: int, policies: dict[str, nn.Module] | None = None) -> dict[str, Any]:
        """What policies do on fresh grids; by default all that there are."""
        found: dict[str, Any] = {"updates": self.updates, "episodes": self.episodes, "cpu_seconds": self.seconds}
        for name, policy in (policies or self.policies()).items():
            draws = Generator().manual_seed(JUDGING + self.seed)
            world = World(grids, self.settings.oversight, draws, self.settings.shown)
            rollout = play(world, policy, STEPS)
            found[name] = {"return": rollout.returns(1, -1).mean().item(), **rollout.shares()}
        return found
