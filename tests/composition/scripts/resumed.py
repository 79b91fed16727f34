"""Training that a checkpoint interrupts: by what goes on, and by what is resumed from it; rank 0 saves what each leaves.

PYTHONPATH=tests torchrun --nproc_per_node=2 tests/composition/scripts/resumed.py steps.pt
"""

import os
import sys
import tempfile

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from composition.averaging import share_of
from composition.forms import SPEC, Routed, batch
from composition.isolation import FORGET, RETAIN, UNLABELED, entries
from composition.parallel_forms import divided
from composition.parameter_forms import sites
from gradroute.optim import Isolation

LABELS = [UNLABELED, RETAIN, FORGET, RETAIN]
CHECKPOINT_AFTER = 2


def sharded(form: str, mesh) -> Routed:
    routed = Routed(form, sites=sites(SPEC))
    for module in (routed.net.encoder, routed.net.decoder, routed.module):
        fully_shard(module)
    return routed


def divided_by_columns_and_rows(form: str, mesh) -> Routed:
    return divided(form, "columns and rows", mesh, level="parameters")


STRATEGIES = {"fsdp2": sharded, "tensor parallelism": divided_by_columns_and_rows}


class Training:
    """A model in parallel and its optimizer, which an isolation keeps off the units that nobody teaches."""

    def __init__(self, strategy: str, form: str, mesh, *, isolated: bool = True) -> None:
        self.routed = STRATEGIES[strategy](form, mesh)
        self.optimizer = torch.optim.AdamW(self.routed.module.parameters(), lr=0.1, weight_decay=0.1)
        if isolated:
            self.isolate()
        self.whole_batch = strategy == "tensor parallelism"
        self.share = share_of(strategy)

    def isolate(self) -> None:
        self.isolation = Isolation(self.routed.router, self.optimizer)

    def step(self, number: int) -> dict[str, torch.Tensor]:
        self.optimizer.zero_grad()
        x, labels = batch(16, seed=number)[0], LABELS[number].repeat(2)
        share = self.share / len(x)
        if not self.whole_batch:
            x, labels = (joined.chunk(2)[dist.get_rank()] for joined in (x, labels))
            share = self.share / len(x)
        (self.routed(x, labels).square().sum() * share).backward()
        self.optimizer.step()
        return entries(self.routed, self.optimizer)

    def state(self) -> dict[str, object]:
        model, optimizer = get_state_dict(self.routed.module, self.optimizer)
        return {"model": model, "optimizer": optimizer}

    def load(self, folder: str) -> None:
        state = self.state()
        dcp.load(state, checkpoint_id=folder)
        set_state_dict(
            self.routed.module,
            self.optimizer,
            model_state_dict=state["model"],
            optim_state_dict=state["optimizer"],
        )


def train(strategy: str, form: str, mesh, folder: str) -> dict[str, list[dict[str, torch.Tensor]]]:
    training, found = Training(strategy, form, mesh), []
    for number in range(len(LABELS)):
        if number == CHECKPOINT_AFTER:
            dcp.save(training.state(), checkpoint_id=folder)
        found.append(training.step(number))
    resumed = Training(strategy, form, mesh, isolated=False)
    resumed.load(folder)
    resumed.isolate()
    return {"went on": found, "resumed": [resumed.step(n) for n in range(CHECKPOINT_AFTER, len(LABELS))]}


def loaded_under_an_isolation(strategy: str, mesh, folder: str) -> list[dict[str, torch.Tensor]]:
    """A checkpoint that is loaded after the isolation was made."""
    late = Training(strategy, "router", mesh)
    late.load(folder)
    return [late.step(n) for n in range(CHECKPOINT_AFTER, len(LABELS))]


def main(path: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    try:
        mesh = init_device_mesh("cpu", (dist.get_world_size(),))
        folders = [tempfile.mkdtemp()]
        found = {}
        for strategy in STRATEGIES:
            for form in ("router", "routed_module"):
                dist.broadcast_object_list(folders)
                folder = f"{folders[0]}/{strategy}, {form}"
                found[strategy, form] = train(strategy, form, mesh, folder)
            found[strategy, "late"] = loaded_under_an_isolation(
                strategy, mesh, folder.replace("routed_module", "router")
            )
        if dist.get_rank() == 0:
            torch.save(found, path)
    finally:
        dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1])
    # Checkpoints leave threads behind that now and then abort a process which ends as usual; all of it is written.
    os._exit(0)
