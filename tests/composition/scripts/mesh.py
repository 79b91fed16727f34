"""FSDP2 and tensor parallelism at once, on a mesh of 2 x 2 processes; rank 0 saves the gradients.

PYTHONPATH=tests torchrun --nproc_per_node=4 tests/composition/scripts/mesh.py gradients.pt
"""

import itertools
import sys

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from composition.averaging import share_of
from composition.forms import FORMS, batch
from composition.parallel_forms import LOCAL_PLANS, PLANS, divided, whole_gradients


def gradients(mesh, form: str, plan: str, level: str, share: float) -> dict[str, torch.Tensor]:
    routed = divided(form, plan, mesh["tensor"], level=level)
    for module in (routed.net.encoder, routed.net.decoder, routed.module):
        fully_shard(module, mesh=mesh["data"])
    # The processes of a row hold parts of the same model, and get the same part of the batch.
    x, labels = (joined.chunk(2)[mesh["data"].get_local_rank()] for joined in batch(16))
    for _ in range(2):
        routed.zero_grad()
        (routed(x, labels).square().sum() / len(x) * share).backward()
    return whole_gradients(routed)


def main(path: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    try:
        mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "tensor"))
        share = 1.0 if share_of("fsdp2") == 1.0 else 1 / mesh["data"].size()
        keys = itertools.product(FORMS, PLANS, ("activations", "parameters"))
        found = {
            key: gradients(mesh, *key, share)
            for key in keys
            if key[0] != "functional" or (key[1] not in LOCAL_PLANS and key[2] == "activations")
        }
        if dist.get_rank() == 0:
            torch.save(found, path)
    finally:
        dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1])
