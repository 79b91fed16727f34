"""A tiny GPT-2 with a label for each token, the Trainer that is tried on it, and the same training as a loop by hand."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.data import SequentialSampler
from transformers import GPT2LMHeadModel, TrainingArguments

import gradroute as gr
from composition.language import LENGTH, SITE, SPEC, VOCABULARY, joined, tiny_gpt2
from gradroute.trainers import RoutedTrainer

LR, STEPS, EXAMPLES = 0.5, 3, 8
# The names of transformers 4, which 5 still knows.
# Of transformers 4, where it enters autocast on a CPU.
OLD_AUTOCAST = pytest.mark.filterwarnings(
    r"ignore:`torch\.cpu\.amp\.autocast\(args\.\.\.\)` is deprecated:FutureWarning"
)
OLD_NAME = pytest.mark.filterwarnings(r"ignore:`gradient_checkpointing(_kwargs)?` is deprecated:FutureWarning")
# One site that stops gradients on their way, and in each block, where checkpointing recomputes, one that stops its own.
NEURONS = gr.RoutingSpec({"retain": slice(0, 24), "forget": slice(24, 30)}, 32, shared=slice(30, 32))
SITES = {SITE: SPEC, "transformer.h.*.mlp.c_fc": gr.Site(NEURONS, level="parameters")}


def examples(ids: list[int] | None = None, *, per_example: bool = False) -> list[dict[str, Tensor]]:
    """Tokens, and for each of these a label out of `ids`; or one label for each example. Some tokens are no targets."""
    generator = torch.Generator().manual_seed(1)
    known = torch.tensor(ids or [0, 1, gr.UNLABELED])
    found = []
    for number in range(EXAMPLES):
        tokens = torch.randint(0, VOCABULARY, (LENGTH,), generator=generator)
        # The first token is nobody's target, but some releases of transformers count it as one.
        targets = torch.where(torch.arange(LENGTH) < 1 + number % 3, -100, tokens)
        shape = () if per_example else (LENGTH,)
        chosen = known[torch.randint(0, len(known), shape, generator=generator)]
        found.append({"input_ids": tokens, "labels": targets, "route_labels": chosen})
    return found


def evaluated() -> list[dict[str, Tensor]]:
    """Four of them with as many targets each, so that it does not matter over what a trainer takes its means."""
    return [examples()[number] for number in (0, 3, 6, 0)]


class InOrder(RoutedTrainer):
    """Its batches are those of the data set from its beginning."""

    def _get_train_sampler(self, *args: object) -> SequentialSampler | None:
        return SequentialSampler(self.train_dataset) if hasattr(self.train_dataset, "__len__") else None


def arguments(path, **options: object) -> TrainingArguments:
    """Plain SGD without surprises, unless the options say otherwise."""
    return TrainingArguments(
        **{
            "output_dir": str(path),
            "max_steps": STEPS,
            "per_device_train_batch_size": 2,
            "optim": "sgd",
            "learning_rate": LR,
            "lr_scheduler_type": "constant",
            "max_grad_norm": 0.0,
            "use_cpu": True,
            "report_to": [],
            "save_strategy": "no",
            "logging_strategy": "no",
            "disable_tqdm": True,
            "dataloader_pin_memory": False,
            **options,
        }
    )


def trainer_of(path, data, *, trainer: dict[str, object] | None = None, **options: object) -> RoutedTrainer:
    """A trainer of a fresh model."""
    given = {"model": tiny_gpt2(), "sites": SITES, "train_dataset": data, **(trainer or {})}
    return InOrder(args=arguments(path, **options), **given)


def trained_by_hand(
    data: list[dict[str, Tensor]],
    *,
    accumulation: int = 1,
    bf16: bool = False,
    routed: bool = True,
    steps: int = STEPS,
    micro: int = 2,
    layers: int = 2,
) -> dict[str, Tensor]:
    """The parameters after the most ordinary loop: the block around forward and backward, a mean over all targets."""
    model = tiny_gpt2(layers).train()
    router = gr.Router(model, SITES)
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)
    batches = itertools.cycle([joined(data[first : first + micro]) for first in range(0, len(data), micro)])
    for _ in range(steps):
        parts = list(itertools.islice(batches, accumulation))
        count = sum(part["labels"][:, 1:].ne(-100).sum() for part in parts)
        for part in parts:
            labels = part["route_labels"] if routed else torch.full_like(part["route_labels"], gr.UNLABELED)
            with router(labels):
                loss_of(model, part, bf16).div(count).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.state_dict()


def loss_of(model: GPT2LMHeadModel, batch: dict[str, Tensor], bf16: bool = False) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        logits = model(input_ids=batch["input_ids"]).logits
    predicted, targets = logits[:, :-1].float().flatten(0, 1), batch["labels"][:, 1:].flatten()
    return functional.cross_entropy(predicted, targets, reduction="sum")


def assert_same(actual: dict[str, Tensor], expected: dict[str, Tensor], **tolerance: float) -> None:
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(actual[name], value, msg=lambda text, name=name: f"{name}: {text}", **tolerance)


def differ(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return any(not torch.allclose(one[name], other[name], rtol=1e-3, atol=1e-4) for name in one)
