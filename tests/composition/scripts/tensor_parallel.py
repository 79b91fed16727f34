"""Tensor and sequence parallelism in every form of routing; rank 0 saves the gradients, and what was refused.

PYTHONPATH=tests torchrun --nproc_per_node=2 tests/composition/scripts/tensor_parallel.py gradients.pt
"""

import itertools
import sys
from collections import Counter

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode

import gradroute as gr
from composition import parallel_block
from composition.forms import FORMS, batch
from composition.parallel_forms import PLANS, divided, whole_gradients


def gradients(mesh, form: str, plan: str, level: str, *, router_first: bool) -> dict[str, torch.Tensor] | str:
    routed = divided(form, plan, mesh, level=level, router_first=router_first)
    try:
        routed(*batch(16)).square().sum().backward()
    except gr.RoutingError as error:
        return str(error)
    return whole_gradients(routed)


def compiled(mesh, name: str) -> dict[str, torch.Tensor] | str:
    try:
        return parallel_block.gradients(parallel_block.CASES[name], mesh, compiled=True)
    except Exception as error:  # of Dynamo of an old torch
        return f"{type(error).__name__}: {error}"


class Messages(TorchDispatchMode):
    """Counts how often the processes speak to each other, by the kind of it."""

    def __init__(self) -> None:
        super().__init__()
        self.counts = Counter()

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        if DTensor in types:
            return NotImplemented  # and so it is asked again of what DTensors are made of
        name = str(operation)
        if "c10d" in name and "wait" not in name:
            self.counts[name] += 1
        return operation(*args, **(kwargs or {}))


def messages(mesh, case: parallel_block.Case, *, routed: bool) -> dict[str, int]:
    with Messages() as messages:
        parallel_block.gradients(case, mesh, routed=routed)
    return dict(messages.counts)


def main(path: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    try:
        mesh = init_device_mesh("cpu", (dist.get_world_size(),))
        cases = parallel_block.CASES
        found = {
            "forms": {
                key: gradients(mesh, *key[:3], router_first=key[3])
                for key in itertools.product(FORMS, PLANS, ("activations", "inputs", "parameters"), (False, True))
                if key[0] != "functional" or key[2:] == ("activations", False)
            },
            "cases": {name: parallel_block.gradients(case, mesh) for name, case in cases.items()},
            "compiled": {name: compiled(mesh, name) for name in parallel_block.COMPILED},
            "messages": {
                name: [messages(mesh, case, routed=routed) for routed in (True, False)]
                for name, case in cases.items()
                if case.ablated is None
            },
        }
        if dist.get_rank() == 0:
            torch.save(found, path)
    finally:
        dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1])
