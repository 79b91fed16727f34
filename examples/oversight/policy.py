"""The policy: two experts, of which a gate makes one; and the two lines that route it."""

from typing import Any

from torch import Tensor, nn

import gradroute as gr
from gradroute.surgery import contract
from oversight.world import ACTIONS, SEEN

HIDDEN = 128
#: A logit whose sigmoid is 1.
SURE = 100.0


def network(outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(SEEN, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, outputs)
    )


class Experts(nn.Module):
    """Mixes the logits of a diamond expert and of a ghost expert. Each of them is a policy, too."""

    def __init__(self) -> None:
        super().__init__()
        self.diamond, self.ghost = network(ACTIONS), network(ACTIONS)
        self.gate, self.share = network(1), nn.Sigmoid()

    def forward(self, seen: Tensor) -> Tensor:
        """The logits of the actions, [..., 4], of what the agents see, [..., 100]."""
        diamond = self.share(self.gate(seen))
        mixed: Tensor = diamond * self.diamond(seen) + (1 - diamond) * self.ghost(seen)
        return mixed


def attach(policy: Experts) -> gr.Router:
    """What was seen to end at one of them teaches its expert; all else teaches both experts, and their shares."""
    diamond = gr.RoutingSpec({"diamond": 0, "ghost": []}, 1)  # of one unit: the expert as a whole
    ghost = gr.RoutingSpec({"diamond": [], "ghost": 0}, 1)
    share = gr.RoutingSpec({"diamond": [], "ghost": []}, 1)
    specs = {"diamond": diamond, "ghost": ghost, "share": share}
    return gr.Router(policy, {name: gr.Site(spec, dim=None) for name, spec in specs.items()})


def without_ghost(router: gr.Router, example: Tensor) -> nn.Module:
    """A copy of the policy from which the ghost expert is gone, and whose gate chooses the other one everywhere."""
    smaller = contract(router, "ghost", example=example).model
    chooses: Any = smaller.get_submodule("gate.4")
    nn.init.zeros_(chooses.weight)
    nn.init.constant_(chooses.bias, SURE)
    return smaller
