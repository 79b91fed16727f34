"""What a run is made of: settings that all runs share, and the condition that sets it apart."""

from dataclasses import dataclass
from typing import Literal

#: What is added to a run's seed for draws that are not those of weights and worlds.
JUDGING, PLACEBO = 1_000_000_007, 2_000_000_011


@dataclass(frozen=True)
class Settings:
    """Of all conditions alike."""

    oversight: float = 0.1  #: The probability with which somebody watches a square.
    grids: int = 256  #: In training.
    steps: int = 32  #: Of each grid, between two updates.
    learning_rate: float = 5e-4
    entropy: float = 0.1  #: Weight of the entropy bonus.
    value: float = 0.5  #: Weight of the baseline's loss.
    gate: float = 0.01  #: Weight of the gate's own loss.
    judged_every: int = 100  #: Updates between two points of the curves.
    judging_grids: int = 2048
    final_grids: int = 8192  #: On which the policies are judged when their training is over.
    shown: bool = True  #: Whether the agent sees who watches.


@dataclass(frozen=True)
class Condition:
    """One row of the table."""

    name: str
    what: str
    #: Two experts and a gate; or one network.
    experts: bool = False
    #: Whether the experts learn by route.
    routed: bool = False
    #: Whether the gate has a loss of its own: to tell where an episode was seen to end.
    gate: bool = True
    #: Labels of the episodes' ends as they were seen, or given to other episodes by lot.
    labels: Literal["true", "random"] = "true"
    #: 1 at any end; that less 2 for a ghost that was seen; or what is true: 1 at the diamond, -1 at the ghost.
    reward: Literal["any", "penalty", "true"] = "any"
    #: Whether episodes that ended unseen are left out.
    filtered: bool = False


ROUTED = Condition("routed", "two experts and a gate, routed by the ends that were seen", experts=True, routed=True)
#: The rows of the table, in their order.
CONDITIONS = (
    ROUTED,
    Condition("penalty", "one network; a ghost that was seen costs 1", reward="penalty"),
    Condition("filtered", "one network; true reward, without what ended unseen", reward="true", filtered=True),
    Condition("placebo", "as `routed`, by labels drawn by lot", experts=True, routed=True, labels="random"),
    Condition("no-gate", "as `routed`, without the gate's loss", experts=True, routed=True, gate=False),
    Condition("unrouted", "as `routed`, without the routes", experts=True),
    Condition("oracle", "one network; true reward of all episodes: an upper bound", reward="true"),
)
