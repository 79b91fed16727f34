"""A small block of a language model, divided over processes by tensor and sequence parallelism, with sites all over it."""

from __future__ import annotations

import contextlib
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.distributed.tensor import Replicate, Shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    SequenceParallel,
    loss_parallel,
    parallelize_module,
)
from torch.nn import functional as F

import gradroute as gr
from composition.forms import SOFT, SPEC, WIDTH, label_kinds

VOCABULARY, FEATURES = 11, 8


class Own(nn.Module):
    """A layer of no known kind: its own parameters learn by route from one run."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(WIDTH, FEATURES)

    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(self.layer(x))


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, FEATURES)
        self.norm = nn.LayerNorm(FEATURES)
        self.up = nn.Linear(FEATURES, WIDTH)
        self.down = Own()
        self.head = nn.Linear(FEATURES, VOCABULARY)

    def forward(self, ids: Tensor) -> Tensor:
        h = self.embed(ids)
        h = h + self.down(torch.tanh(self.up(self.norm(h))))
        return self.head(h)


def uneven(width: int) -> gr.RoutingSpec:
    """Units of each label in blocks that end elsewhere than the parts that processes hold."""
    return gr.RoutingSpec({"retain": slice(0, 3), "forget": slice(3, 6)}, width, shared=range(6, width))


generator = torch.Generator().manual_seed(1)
IDS = torch.randint(0, VOCABULARY, (4, 6), generator=generator)
EXAMPLES = torch.tensor([0, 1, gr.UNLABELED, 0])
TOKENS = torch.randint(-1, 2, (4, 6), generator=generator)

TENSOR = {"up": ColwiseParallel, "down.layer": RowwiseParallel}
SEQUENCE = {
    "embed": lambda: RowwiseParallel(input_layouts=Replicate(), output_layouts=Shard(1)),
    "norm": SequenceParallel,
    "up": lambda: ColwiseParallel(input_layouts=Shard(1)),
    "down.layer": lambda: RowwiseParallel(output_layouts=Shard(1)),
    "head": lambda: ColwiseParallel(input_layouts=Shard(1), output_layouts=Replicate()),
}
LOSS = TENSOR | {"head": lambda: ColwiseParallel(use_local_output=False)}
EMBEDDING = {"embed": lambda: ColwiseParallel(output_layouts=Replicate())}


class Case(NamedTuple):
    """What stands where, and how it is divided."""

    plan: dict[str, object]
    sites: dict[str, object]
    labels: Tensor = TOKENS
    ablated: str | None = None
    loss_parallel: bool = False


def own(spec: gr.RoutingSpec, on: str = "output") -> gr.Site:
    return gr.Site(spec, level="parameters", on=on)


BOTH_ENDS = {"up": own(SOFT), "down.layer": own(SOFT, "input")}
CASES = {
    "soft": Case(TENSOR, {"up": SOFT}),
    "mixture": Case(TENSOR, {"up": SOFT}, label_kinds(TOKENS)["mixture"]),
    "multi-hot": Case(TENSOR, {"up": SOFT}, label_kinds(TOKENS)["multi_hot"]),
    "partial sums": Case(TENSOR, {"down.layer": uneven(FEATURES)}),
    "input of columns": Case(TENSOR, {"up": gr.Site(uneven(FEATURES), on="input")}),
    "input of rows": Case(TENSOR, {"down.layer": gr.Site(SPEC, on="input")}),
    "parameters, both ends": Case(TENSOR, BOTH_ENDS),
    "parameters, partial sums": Case(TENSOR, {"down.layer": own(uneven(FEATURES))}),
    "parameters, both ends of one layer": Case(TENSOR, {"up": [own(SPEC), own(uneven(FEATURES), "input")]}),
    "parameters, a module of no known kind": Case(TENSOR, {"down": own(uneven(FEATURES))}),
    "parameters, one unit": Case(TENSOR, {"up": own(gr.RoutingSpec({"retain": 0, "forget": []}, 1))}, EXAMPLES),
    "ablated": Case(TENSOR, {"up": SPEC}, ablated="forget"),
    "ablated, partial sums": Case(TENSOR, {"down.layer": uneven(FEATURES)}, ablated="forget"),
    "embedding": Case(EMBEDDING, {"embed": uneven(FEATURES)}),
    "parameters, embedding": Case(EMBEDDING, {"embed": own(uneven(FEATURES))}),
    "sequence": Case(SEQUENCE, {"up": SPEC, "norm": uneven(FEATURES), "down.layer": uneven(FEATURES)}),
    "sequence, labels of examples": Case(SEQUENCE, {"up": SPEC, "norm": uneven(FEATURES)}, EXAMPLES),
    "sequence, embedding": Case(SEQUENCE, {"embed": uneven(FEATURES)}),
    "sequence, parameters": Case(SEQUENCE, BOTH_ENDS | {"head": own(uneven(VOCABULARY))}),
    "sequence, parameters of a norm": Case(SEQUENCE, {"norm": [own(uneven(FEATURES)), own(uneven(FEATURES), "input")]}),
    "loss": Case(LOSS, {"head": uneven(VOCABULARY)}, loss_parallel=True),
    "loss, parameters": Case(LOSS, {"head": own(uneven(VOCABULARY))}, loss_parallel=True),
}
COMPILED = ("parameters, both ends", "ablated, partial sums", "sequence")


def gradients(case: Case, mesh: object = None, *, routed: bool = True, compiled: bool = False) -> dict[str, Tensor]:
    """The gradients of one step; with a mesh, divided over it."""
    torch.manual_seed(0)
    model = Block()
    if mesh is not None:
        parallelize_module(model, mesh, {name: style() for name, style in case.plan.items()})
    blocks = contextlib.ExitStack()
    if routed:
        router = gr.Router(model, case.sites)
        blocks.enter_context(router(case.labels))
        if case.ablated is not None:
            blocks.enter_context(router.ablated(case.ablated))
    with blocks:
        logits = (torch.compile(model, backend="aot_eager") if compiled else model)(IDS)
        with loss_parallel() if case.loss_parallel and mesh is not None else contextlib.nullcontext():
            F.cross_entropy(logits.reshape(-1, VOCABULARY), IDS.roll(1, 1).reshape(-1)).backward()
    found = {name: parameter.grad for name, parameter in model.named_parameters()}
    return {
        name: gradient.full_tensor() if hasattr(gradient, "full_tensor") else gradient
        for name, gradient in found.items()
    }
