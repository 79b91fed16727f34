"""`RoutedTrainer` on two processes, each with its part of every batch; rank 0 saves what they have trained.

PYTHONPATH=tests torchrun --nproc_per_node=2 tests/composition/scripts/routed_trainer.py trained.pt
"""

import sys
import tempfile

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from composition.language import tiny_gpt2
from unit.trainers.by_hand import evaluated, examples, trainer_of

DECAY = {"optim": "adamw_torch", "weight_decay": 0.5, "learning_rate": 0.1}


def reentrant(flag: bool) -> dict[str, object]:
    return {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": flag}}


class Stream(torch.utils.data.IterableDataset):
    """Data without a length, which one process reads for both."""

    def __iter__(self):
        return iter(examples())


# name: the labels of the data or the data, the trainer's own arguments, and the options of TrainingArguments.
RUNS = {
    "plain": (None, {}, {}),
    "accumulation": (None, {}, {"gradient_accumulation_steps": 2}),
    "iterable": (Stream(), {}, {}),
    "checkpointing": (None, {}, reentrant(False)),
    "reentrant": (None, {}, reentrant(True)),
    "isolated, forget only": ([1], {"isolation": True}, DECAY),
    # Batches of two go to the processes in turn, so that each process has one label of its own.
    "isolated, a label each": ("in turn", {"isolation": True}, DECAY),
}


def data_of(ids):
    if isinstance(ids, Stream):
        return ids
    if ids != "in turn":
        return examples(ids)
    return [{**each, "route_labels": torch.tensor(number // 2 % 2)} for number, each in enumerate(examples())]


def train(ids, given, options):
    data = data_of(ids)
    given = {"eval_dataset": evaluated(), "evaluate_ablated": ["forget"], **given}
    trainer = trainer_of(
        tempfile.mkdtemp(), data, trainer=given, ddp_backend="gloo", per_device_eval_batch_size=1, **options
    )
    trainer.train()
    assert isinstance(trainer.model_wrapped, DistributedDataParallel)
    assert isinstance(trainer.model, type(tiny_gpt2()))
    metrics = trainer.evaluate()
    folder = tempfile.mkdtemp()
    trainer.save_model(folder)
    return trainer.model.state_dict(), {key: value for key, value in metrics.items() if key.endswith("loss")}


def main(path: str) -> None:
    torch.set_num_threads(1)
    found = {name: train(*run) for name, run in RUNS.items()}
    if dist.get_rank() == 0:
        torch.save(found, path)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1])
