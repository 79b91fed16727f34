"""A module that is no layer of torch's, and labels, that the tests of level "parameters" on unknown modules share."""

import torch
from torch import nn

import gradroute as gr

WIDTH = 4
SPEC = gr.RoutingSpec({"retain": [0, 1, 2], "forget": 3}, WIDTH)
RETAIN = torch.zeros(5, dtype=torch.long)
MIXED = torch.tensor([0, 1, 1, 0, 1])


class Projected(nn.Module):
    """A module that is no layer of torch's: a projection, and what a subclass makes of it."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.projection = nn.Linear(3, WIDTH)

    def forward(self, x):
        return self.projection(x).tanh()
