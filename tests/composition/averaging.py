"""What the processes of a group make of their gradients, without any routing: the mean, or on gloo with an old torch the sum."""

import torch
from torch.distributed.fsdp import fully_shard


def share_of(strategy: str) -> float:
    """By what a process's loss must be multiplied for its gradients to be averaged."""
    if not strategy.startswith("fsdp"):
        return 1.0
    layer = torch.nn.Linear(1, 1, bias=False)
    fully_shard(layer)
    layer(torch.ones(1, 1)).sum().backward()
    return 1 / layer.weight.grad.full_tensor().item()
