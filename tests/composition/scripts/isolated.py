"""An isolated optimizer on two processes whose examples have different labels; rank 0 saves what each step leaves.

PYTHONPATH=tests torchrun --nproc_per_node=2 tests/composition/scripts/isolated.py steps.pt
"""

import sys

import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from composition.averaging import share_of
from composition.forms import SPEC, Routed, batch
from composition.isolation import FORGET, RETAIN, UNLABELED, entries
from composition.parameter_forms import sites
from gradroute.optim import Isolation


def ddp(routed):
    return DistributedDataParallel(routed.module)


def fsdp(routed):
    fully_shard(routed.net.encoder)
    fully_shard(routed.net.decoder)
    return fully_shard(routed.module)


STRATEGIES = {"ddp": ddp, "fsdp2": fsdp}
# For each step the labels of rank 0 and of rank 1.
STEPS = [(RETAIN, RETAIN), (UNLABELED, RETAIN), (RETAIN, RETAIN), (FORGET, FORGET), (RETAIN, FORGET)]


def train(form: str, strategy: str) -> list[dict[str, torch.Tensor]]:
    routed = Routed(form, sites=sites(SPEC))
    model = STRATEGIES[strategy](routed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.1)
    Isolation(routed.router, optimizer)
    found, share = [], share_of(strategy)
    for number, labels in enumerate(STEPS):
        optimizer.zero_grad()
        x = batch(16, seed=number)[0].chunk(2)[dist.get_rank()]
        (routed(x, labels[dist.get_rank()], via=model).square().sum() / len(x) * share).backward()
        optimizer.step()
        found.append(entries(routed, optimizer))
    return found


def main(path: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    try:
        found = {s: {form: train(form, s) for form in ("router", "routed_module")} for s in STRATEGIES}
        if dist.get_rank() == 0:
            torch.save(found, path)
    finally:
        dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1])
