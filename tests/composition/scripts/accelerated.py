"""accelerate on two processes, each with its part of the data and its labels; rank 0 saves the gradients.

PYTHONPATH=tests torchrun --nproc_per_node=2 tests/composition/scripts/accelerated.py gradients.pt
"""

import sys

import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, TensorDataset

from composition.forms import FORMS, SPEC, Routed, batch
from composition.isolation import RETAIN, entries
from composition.parameter_forms import sites
from gradroute.optim import Isolation

STRATEGIES = {
    "plain": (8, {}),
    "accumulation": (4, {"gradient_accumulation_steps": 2}),
    "bfloat16": (8, {"mixed_precision": "bf16"}),
}


def accelerator_of(**options) -> Accelerator:
    from accelerate.state import AcceleratorState, GradientState

    AcceleratorState._reset_state()  # another precision than before is refused
    GradientState._reset_state()
    return Accelerator(cpu=True, **options)


def gradients(form: str, strategy: str) -> dict[str, torch.Tensor]:
    form, _, level = form.partition(", ")
    size, options = STRATEGIES[strategy]
    accelerator = accelerator_of(**options)
    routed = Routed(form, sites=sites(SPEC) if level else None)
    loader = DataLoader(TensorDataset(*batch(16)), batch_size=size)
    model, loader = accelerator.prepare(routed.module, loader)
    assert isinstance(model, DistributedDataParallel)
    for x, labels in loader:
        with accelerator.accumulate(model):
            accelerator.backward(routed(x, labels, via=model).float().square().sum() / len(x))
    return routed.gradients()


def isolated() -> list[dict[str, torch.Tensor]]:
    """The units before and after a step that teaches those of one label."""
    accelerator = accelerator_of()
    routed = Routed("routed_module", sites=sites(SPEC))
    optimizer = torch.optim.AdamW(routed.module.parameters(), lr=0.1, weight_decay=0.1)
    Isolation(routed.router, optimizer)  # of the optimizer itself, before it is wrapped
    model, optimizer = accelerator.prepare(routed.module, optimizer)
    found = []
    for number in range(3):
        optimizer.zero_grad()
        x = batch(16, seed=number)[0].chunk(2)[dist.get_rank()]
        labels = RETAIN if number else torch.full_like(RETAIN, -1)
        accelerator.backward(routed(x, labels, via=model).square().sum() / len(x))
        optimizer.step()
        found.append(entries(routed, optimizer.optimizer))
    return found


def main(path: str) -> None:
    torch.set_num_threads(1)
    try:
        forms = [*FORMS, "router, parameters", "routed_module, parameters"]
        found = {(strategy, form): gradients(form, strategy) for strategy in STRATEGIES for form in forms}
        found["isolated"] = isolated()
        if dist.get_rank() == 0:
            torch.save(found, path)
    finally:
        dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1])
