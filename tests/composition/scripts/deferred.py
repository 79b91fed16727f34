"""DDP on two processes whose labels come after the forward pass; rank 0 saves gradients, and what a step leaves.

PYTHONPATH=tests torchrun --nproc_per_node=2 tests/composition/scripts/deferred.py gradients.pt
"""

import sys

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from composition.averaging import share_of
from composition.forms import SPEC, Routed, batch
from composition.parameter_forms import sites


def gradients(form: str, level: str) -> dict[str, torch.Tensor]:
    routed = Routed(form, sites=sites(SPEC) if level == "parameters" else None)
    model = DistributedDataParallel(routed.module)
    x, labels = (joined.chunk(dist.get_world_size())[dist.get_rank()] for joined in batch(16))
    for _ in range(2):  # the second step is the one of a running training: rebuilt buckets
        routed.zero_grad()
        with routed.router.deferred() as later:
            loss = model(x).square().sum() / len(x) * share_of("ddp")
        later.set(labels)
        loss.backward()
    return routed.gradients()


def main(path: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    try:
        found = {
            level: {form: gradients(form, level) for form in ("router", "routed_module")}
            for level in ("activations", "parameters")
        }
        if dist.get_rank() == 0:
            torch.save(found, path)
    finally:
        dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1])
