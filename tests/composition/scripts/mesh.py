"""FSDP2 and tensor parallelism at once, on a mesh of 2 x 2 processes; rank 0 saves the gradients.

PYTHONPATH=tests torchrun --nproc_per_node=4 tests/composition/scripts/mesh.py gradients.pt
"""

import itertools
import sys

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.parallel import parallelize_module

from composition.averaging import share_of
from composition.forms import FORMS, Net, Routed, batch
from composition.parallel_forms import LOCAL_PLANS, PLANS, divided

Part = tuple[Tensor, Tensor]  # which entries of the whole tensor a process holds, and their values


def shard(routed: Routed, mesh) -> None:
    for module in (routed.net.encoder, routed.net.decoder, routed.module):
        fully_shard(module, mesh=mesh["data"])


def entries(plan: str, mesh) -> dict[str, Tensor]:
    """Which entries of each parameter this process holds: those of a network divided alike, whose parameters count."""

    def make(*args: object) -> nn.Module:
        net = Net(*args)
        for parameter in net.parameters():
            parameter.data = torch.arange(parameter.numel(), dtype=parameter.dtype).view_as(parameter)
        return parallelize_module(net, mesh["tensor"], PLANS[plan]())

    counting = Routed("router", make)
    shard(counting, mesh)
    return {name: parameter.to_local().long() for name, parameter in counting.net.named_parameters()}


def gradients(mesh, form: str, plan: str, level: str, share: float) -> dict[str, Part]:
    routed = divided(form, plan, mesh["tensor"], level=level)
    shard(routed, mesh)
    # The processes of a row hold parts of the same model, and get the same part of the batch.
    x, labels = (joined.chunk(2)[mesh["data"].get_local_rank()] for joined in batch(16))
    for _ in range(2):
        routed.zero_grad()
        (routed(x, labels).square().sum() / len(x) * share).backward()
    held = entries(plan, mesh)
    return {name: (held[name], gradient.to_local()) for name, gradient in routed.gradients().items()}


def put_together(parts: list[Part], like: Tensor) -> Tensor:
    """A whole tensor. Not by `full_tensor`, which torch 2.8 gets wrong where the parts are of unequal size."""
    whole = torch.full_like(like, float("nan"))
    for held, values in parts:
        whole.view(-1)[held.reshape(-1)] = values.reshape(-1)
    return whole


def main(path: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    try:
        mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "tensor"))
        share = 1.0 if share_of("fsdp2") == 1.0 else 1 / mesh["data"].size()
        keys = itertools.product(FORMS, PLANS, ("activations", "parameters"))
        mine = {
            key: gradients(mesh, *key, share)
            for key in keys
            if key[0] != "functional" or (key[1] not in LOCAL_PLANS and key[2] == "activations")
        }
        everybodys = [{}] * dist.get_world_size()
        dist.all_gather_object(everybodys, mine)
        if dist.get_rank() == 0:
            parameters = dict(Routed("router").net.named_parameters())
            found = {
                key: {
                    name: put_together([process[key][name] for process in everybodys], parameters[name].detach())
                    for name in held
                }
                for key, held in mine.items()
            }
            torch.save(found, path)
    finally:
        dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1])
