"""Every way of training in parallel, in every form of routing; rank 0 saves the gradients.

PYTHONPATH=tests torchrun --nproc_per_node=2 tests/composition/scripts/distributed.py gradients.pt
"""

import sys
from contextlib import nullcontext

import torch
import torch.distributed as dist
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.nn.parallel import DistributedDataParallel

from composition.averaging import share_of
from composition.forms import FORMS, SILENT, SPEC, Net, Routed, batch
from composition.parameter_forms import sites

BF16 = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)


class PartlyUsed(Net):
    """Has a layer that takes no part in the loss, as models with an optional head do."""

    def __init__(self, *args) -> None:
        super().__init__(*args)
        self.unused = torch.nn.Linear(2, 2)


def ddp(routed, **options):
    return DistributedDataParallel(routed.module, **options)


def ddp_compiled(routed):
    return torch.compile(DistributedDataParallel(routed.module), backend="aot_eager")


def fsdp(routed, **options):
    fully_shard(routed.net.encoder, **options)
    fully_shard(routed.net.decoder, **options)
    return fully_shard(routed.module, **options)


# name: how to wrap, with which options, and in how many accumulated parts each rank runs its share.
STRATEGIES = {
    "ddp": (ddp, {}, 1),
    "ddp no_sync": (ddp, {}, 2),
    "ddp find_unused_parameters": (ddp, {"find_unused_parameters": True}, 1),
    "ddp static_graph": (ddp, {"static_graph": True}, 1),
    "ddp gradient_as_bucket_view": (ddp, {"gradient_as_bucket_view": True}, 1),
    "ddp compiled": (ddp_compiled, {}, 1),
    "fsdp2": (fsdp, {}, 1),
    "fsdp2 accumulation": (fsdp, {}, 2),
    "fsdp2 without reshard": (fsdp, {"reshard_after_forward": False}, 1),
    "fsdp2 bfloat16": (fsdp, {"mp_policy": BF16}, 1),
}


def without_sync(model, last: bool):
    """What DDP and FSDP2 each want to hear before a backward that is not the last of a step."""
    if hasattr(model, "no_sync"):
        return nullcontext() if last else model.no_sync()
    model.set_requires_gradient_sync(last)
    return nullcontext()


def gradients(form: str, strategy: str) -> dict[str, torch.Tensor]:
    wrap, options, parts = STRATEGIES[strategy]
    form, _, how = form.partition(", ")
    spec = SILENT if how == "silent" else SPEC
    make = PartlyUsed if "find_unused_parameters" in options else Net
    routed = Routed(form, make, spec=spec, sites=sites(SPEC) if how == "parameters" else None)
    model = wrap(routed, **options)
    x, labels = (joined.chunk(dist.get_world_size())[dist.get_rank()] for joined in batch(16))
    share = share_of(strategy)
    for _ in range(2):  # the second step is the one of a running training: static graphs, rebuilt buckets
        routed.zero_grad()
        pieces = list(zip(x.chunk(parts), labels.chunk(parts), strict=True))
        for number, (x_piece, labels_piece) in enumerate(pieces):
            with without_sync(model, last=number == parts - 1) if parts > 1 else nullcontext():
                (routed(x_piece, labels_piece, via=model).float().square().sum() / len(x) * share).backward()
    return {
        name: gradient.full_tensor() if hasattr(gradient, "full_tensor") else gradient
        for name, gradient in routed.gradients().items()
        if gradient is not None
    }


def main(path: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    try:
        forms = [*FORMS, "router, parameters", "routed_module, parameters", "routed_module, silent"]
        found = {strategy: {form: gradients(form, strategy) for form in forms} for strategy in STRATEGIES}
        if dist.get_rank() == 0:
            torch.save(found, path)
    finally:
        dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1])
