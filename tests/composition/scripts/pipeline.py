"""Pipelines of two processes, with each schedule in the forms that take labels as an argument; rank 0 saves all gradients.

PYTHONPATH=tests torchrun --nproc_per_node=2 tests/composition/scripts/pipeline.py gradients.pt
"""

import sys
import warnings

import torch
import torch.distributed as dist
from torch.distributed.pipelining import (
    PipelineStage,
    Schedule1F1B,
    ScheduleGPipe,
    ScheduleInterleaved1F1B,
    ScheduleInterleavedZeroBubble,
    SplitPoint,
    pipeline,
)

import gradroute as gr
from composition.forms import SPEC
from composition.pipeline_stages import (
    LAYERS,
    MICROBATCHES,
    RUNS,
    Stage,
    argument,
    data,
    gradients,
    loss_of,
    routed_stage,
)

# name: the schedule, and how many stages each process has.
SCHEDULES = {
    "ScheduleGPipe": (ScheduleGPipe, 1),
    "Schedule1F1B": (Schedule1F1B, 1),
    "ScheduleInterleaved1F1B": (ScheduleInterleaved1F1B, 2),
    "ScheduleInterleavedZeroBubble": (ScheduleInterleavedZeroBubble, 2),
}
CPU = torch.device("cpu")


def run(form: str, level: str, name: str) -> list[dict[str, torch.Tensor]]:
    make, mine = SCHEDULES[name]
    rank, n_stages = dist.get_rank(), mine * dist.get_world_size()
    depth = LAYERS // n_stages
    indices = [rank + number * dist.get_world_size() for number in range(mine)]
    modules = [routed_stage(form, level, range(depth * index, depth * (index + 1))) for index in indices]
    stages = [PipelineStage(module, index, n_stages, CPU) for module, index in zip(modules, indices, strict=True)]
    options = {"loss_fn": loss_of, "scale_grads": False}
    schedule = make(stages if mine > 1 else stages[0], MICROBATCHES, **options)
    x, labels = data()
    for _ in range(2):
        for module in modules:
            module.zero_grad()
        # The first stage gets the inputs, the last one the targets, and every stage the labels of all.
        schedule.step(
            *([x] if 0 in indices else []),
            **({"target": x} if n_stages - 1 in indices else {}),
            **{argument(form): labels},
        )
    found = [None, None]
    dist.all_gather_object(found, gradients(modules))
    return found


def block_around_the_schedule(group) -> str:
    """What a block with the labels of the whole batch says to a pipeline of one process alone."""
    stage = Stage(range(LAYERS))
    schedule = ScheduleGPipe(PipelineStage(stage, 0, 1, CPU, group=group), MICROBATCHES, loss_fn=loss_of)
    x, labels = data()
    try:
        with gr.Router(stage, {"*.linear": SPEC})(labels):
            schedule.step(x, target=x)
    except Exception as error:
        return f"{type(error.__cause__ or error).__name__}: {error.__cause__ or error}"
    return "nothing"


def cut_out_of_an_exported_program(form: str) -> str:
    """What is said where `pipeline` exports the model to cut it up, and nothing of routing is in what it exports."""
    model, (x, labels) = routed_stage(form, "activations"), data()
    size = len(x) // MICROBATCHES
    try:
        pipeline(model, (x[:size],), {argument(form): labels[:size]})
    except Exception as error:
        return type(error).__name__
    return "nothing"


def block_around_an_exported_program() -> list[str]:
    """What is warned of in a block around the steps of a model that was exported without labels."""
    rank, stage = dist.get_rank(), Stage(range(LAYERS))
    router = gr.Router(stage, {"*.linear": SPEC})
    x, labels = data()
    cut = pipeline(stage, (x[: len(x) // MICROBATCHES],), split_spec={"layer2": SplitPoint.BEGINNING})
    schedule = ScheduleGPipe(cut.build_stage(rank, CPU), MICROBATCHES, loss_fn=loss_of)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with router(labels):
            schedule.step(*([] if rank else [x]), **({"target": x} if rank else {}))
    return [str(warning.message) for warning in caught if warning.category is gr.UnroutedWarning]


def main(path: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    try:
        found = {run_of: run(*run_of) for run_of in RUNS}
        groups = [dist.new_group([rank]) for rank in range(dist.get_world_size())]
        found["router"] = block_around_the_schedule(groups[dist.get_rank()])
        found["exported"] = {form: cut_out_of_an_exported_program(form) for form in ("functional", "routed_module")}
        found["exported"]["router"] = block_around_an_exported_program()
        if dist.get_rank() == 0:
            torch.save(found, path)
    finally:
        dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1])
