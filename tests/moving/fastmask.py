"""fastmask's MLPs, from the description of their classes: 0 is "forget" and 1 is "retain", for each token, or a number between.

Where no `mask_ids` are given, all are 0.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, linear

from .hook_points import with_gradient_times

WIDTH, NEURONS, EXPANDED = 4, 6, 3


@dataclass(frozen=True)
class Rates:
    """What multiplies the gradient of each part of the neurons, for each kind of token."""

    expanded_dim_lr_forget: float = 1.0
    expanded_dim_lr_retain: float = 1.0
    original_dim_lr_forget: float = 0.0
    original_dim_lr_retain: float = 1.0

    def of_tokens(self, mask_ids: Tensor) -> Tensor:
        """[..., neurons]: those of the MLP as it was, then those that it was expanded by."""
        original = mask_ids * self.original_dim_lr_retain + (1 - mask_ids) * self.original_dim_lr_forget
        expanded = mask_ids * self.expanded_dim_lr_retain + (1 - mask_ids) * self.expanded_dim_lr_forget
        return torch.cat(
            [
                original[..., None].expand(*mask_ids.shape, NEURONS),
                expanded[..., None].expand(*mask_ids.shape, EXPANDED),
            ],
            -1,
        )


def mlp() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(WIDTH, NEURONS + EXPANDED), nn.GELU(), nn.Linear(NEURONS + EXPANDED, WIDTH)).double()


def expanded_mlp(
    model: nn.Sequential, x: Tensor, mask_ids: Tensor | None, rates: Rates, *, parameters: bool, ablate: bool = False
) -> Tensor:
    """`ExpandedMLP`: the layer that makes the neurons learns by the rates, and upstream too if not `parameters`."""
    up, down = model[0], model[2]
    if ablate:
        keep = torch.arange(NEURONS + EXPANDED) < NEURONS
        return down(gelu(up(x) * keep))
    mask_ids = torch.zeros(x.shape[:-1], dtype=x.dtype) if mask_ids is None else mask_ids
    learning = rates.of_tokens(mask_ids)
    if not parameters:
        return down(gelu(with_gradient_times(up(x), learning)))
    by_weights, by_input = linear(x.detach(), up.weight, up.bias), linear(x, up.weight.detach(), up.bias.detach())
    return down(gelu(with_gradient_times(by_weights, learning) + by_input - by_input.detach()))


def discrete_masking_mlp(model: nn.Sequential, x: Tensor, mask_ids: Tensor, masks: Tensor) -> Tensor:
    """`DiscreteMaskingMLP`: behind the GELU, each token by the mask of its id."""
    return model[2](with_gradient_times(gelu(model[0](x)), masks[mask_ids]))
