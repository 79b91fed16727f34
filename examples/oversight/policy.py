"""The policy: two experts, of which a gate makes one; and the two lines that route it."""

import torch
from torch import Tensor, nn

import gradroute as gr
from oversight.world import ACTIONS, SEEN

HIDDEN = 128


def network(outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(SEEN, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, outputs)
    )


class Experts(nn.Module):
    """Mixes the logits of a diamond expert and of a ghost expert. Each of them is a policy, too."""

    def __init__(self) -> None:
        super().__init__()
        self.diamond, self.ghost = network(ACTIONS), network(ACTIONS)
        self.gate = network(1)

    def forward(self, seen: Tensor) -> Tensor:
        """The logits of the actions, [..., 4], of what the agents see, [..., 100]."""
        diamond = torch.sigmoid(self.gate(seen))
        mixed: Tensor = diamond * self.diamond(seen) + (1 - diamond) * self.ghost(seen)
        return mixed


def attach(policy: Experts) -> gr.Router:
    """What was seen to end at one of them teaches its expert and the gate; all else teaches both experts."""
    diamond = gr.RoutingSpec({"diamond": slice(ACTIONS), "ghost": []}, ACTIONS)
    ghost = gr.RoutingSpec({"diamond": [], "ghost": slice(ACTIONS)}, ACTIONS)
    gate = gr.RoutingSpec({"diamond": 0, "ghost": 0}, 1, unlabeled="none")
    return gr.Router(policy, {"diamond": diamond, "ghost": ghost, "gate": gate})
