"""A held optimizer on two processes; rank 0 saves what each step leaves.

PYTHONPATH=tests torchrun --nproc_per_node=2 tests/composition/scripts/held.py steps.pt
"""

import sys

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from composition.averaging import share_of
from gradroute.optim import Hold

# Five rows, so that the processes hold three and two of them.
ROWS = [0, 4]
MASK = torch.arange(15).view(5, 3) % 4 == 1


class Net(nn.Module):
    """Two layers beside each other: of one rows are held, of the other what the mask names."""

    def __init__(self) -> None:
        super().__init__()
        self.rows, self.mask = nn.Linear(3, 5, bias=False), nn.Linear(3, 5, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([self.rows(x), self.mask(x)], 1)


def whole(tensor: torch.Tensor) -> torch.Tensor:
    return (tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor).detach().clone()


def train(strategy: str) -> list[dict[str, torch.Tensor]]:
    """A free step, so that there is momentum, and three with a hold, all of them clipped."""
    share = share_of(strategy)
    torch.manual_seed(0)
    model = net = Net()
    if strategy == "ddp":
        model = DistributedDataParallel(net)
    elif strategy == "fsdp2":
        fully_shard(net.rows)
        fully_shard(net.mask)
        model = fully_shard(net)
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.1, weight_decay=0.1)
    parameters = {"rows": net.rows.weight, "mask": net.mask.weight}
    found: list[dict[str, torch.Tensor]] = []
    for number in range(4):
        if number == 1:
            Hold(optimizer, {parameters["rows"]: ROWS, parameters["mask"]: MASK})
        optimizer.zero_grad()
        x = torch.randn(8, 3, generator=torch.Generator().manual_seed(number))
        if strategy != "one process":
            x = x.chunk(2)[dist.get_rank()]
        (model(x).square().sum(1).mean() * share).backward()
        norm = nn.utils.clip_grad_norm_(net.parameters(), 0.5)
        optimizer.step()
        step = {"norm": whole(norm)}
        for name, parameter in parameters.items():
            step[name] = whole(parameter)
            step[f"{name}: exp_avg"] = whole(optimizer.state[parameter]["exp_avg"])
        found.append(step)
    return found


def main(path: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    try:
        found = {strategy: train(strategy) for strategy in ("ddp", "fsdp2")}
        if dist.get_rank() == 0:
            torch.save(found, path)
    finally:
        dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1])
