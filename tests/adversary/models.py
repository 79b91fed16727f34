"""Blocks of which the machine builds its models: each maps [B, T, D] to [B, T, D], and names its sites.

A block does in place, or by an alias, what ordinary models do so. The oracle's tensors are clones, so that with `pure`
set a block computes the same function without in-place operations and without aliases.
"""

from __future__ import annotations

import collections
import dataclasses
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

BATCH, TIME, WIDTH = 3, 2, 4
Pair = collections.namedtuple("Pair", ["first", "second"])


@dataclasses.dataclass
class Record:
    """An output that is a dataclass."""

    first: Tensor
    second: Tensor


class Both(dict):  # type: ignore[type-arg]
    """An output whose items are its attributes, too, as many libraries write it."""

    def __init__(self, **items: Any) -> None:
        super().__init__(items)
        self.__dict__ = self


@dataclasses.dataclass(frozen=True)
class Slot:
    """A module of a block that may be a site, and how."""

    name: str
    dim: int = -1
    path: tuple[int | str, ...] = ()
    per_position: bool = True  # whether labels may be [B, T]
    ends: tuple[str, ...] = ("output",)
    own: bool = True  # whether it has parameters of its own


class Block(nn.Module):
    """Something that maps [B, T, D] to [B, T, D]."""

    slots: tuple[Slot, ...] = ()
    pure = False


class Dense(Block):
    """A linear layer; while `around` is set, its forward method or a function on its weights is called in its place."""

    slots = (Slot("inner", ends=("output", "input")),)
    around: str | None = None

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        if self.around == "forward":
            return torch.tanh(self.inner.forward(x))
        if self.around == "function":
            return torch.tanh(F.linear(x, self.inner.weight, self.inner.bias))
        return torch.tanh(self.inner(x))


class InPlaceAfter(Dense):
    """An activation in place, as in a ResNet."""

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.inner(x), inplace=not self.pure) + x


class Twice(Dense):
    """One module called twice."""

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(torch.tanh(self.inner(x))) + x


class Norm(Block):
    slots = (Slot("inner"),)

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.LayerNorm(WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) + x


class Conv(Block):
    slots = (Slot("inner", dim=1, ends=("output", "input")),)

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Conv1d(WIDTH, WIDTH, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x.transpose(1, 2)).transpose(1, 2)


class BatchNorm(Block):
    """Buffers that a forward pass updates."""

    slots = (Slot("inner", dim=1),)

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.BatchNorm1d(WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x.transpose(1, 2)).transpose(1, 2) + x


class Lookup(Block):
    slots = (Slot("inner"),)

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Embedding(3, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        ids = (x.detach().sum(-1) > 0).long() + (x.detach()[..., 0] > 0).long()
        return self.inner(ids) + x


class Cell(Block):
    """A recurrence written out."""

    slots = (Slot("inner", per_position=False),)

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.GRUCell(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        state, states = torch.zeros_like(x[:, 0]), []
        for step in x.unbind(1):
            state = self.inner(step, state)
            states.append(state)
        return torch.stack(states, 1)


class Attention(Block):
    """Several outputs, keyword arguments, and draws of random numbers."""

    slots = (Slot("inner", path=(0,)),)

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.MultiheadAttention(WIDTH, 2, dropout=0.25, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x, x, value=x, need_weights=True)[0] + x


class Remembers(nn.Module):
    """Keeps what it computed, and uses it in the next pass: a cache."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(WIDTH, WIDTH)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return F.dropout(self.inner(x), 0.25, self.training) * (1 + self.calls / 4)


class Memory(Block):
    slots = (Slot("inner"),)

    def __init__(self) -> None:
        super().__init__()
        self.inner = Remembers()

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) + x


class Outputs(nn.Module):
    """Two tensors in an output of some kind; the second one also teaches the first one's layer."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.one, self.two = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Any:
        first = self.one(x)
        second = self.two(first) + x
        makers: dict[str, Any] = {
            "tuple": lambda first, second: (first, second),
            "list": lambda first, second: [first, second],
        }
        makers |= {"dict": dict, "both": Both, "record": Record, "pair": Pair}
        return makers[self.kind](first=first, second=second)


class Several(Block):
    kind = "tuple"
    slots = (Slot("inner", path=(0,)), Slot("inner", path=(1,)))

    def __init__(self) -> None:
        super().__init__()
        self.inner = Outputs(self.kind)

    def forward(self, x: Tensor) -> Tensor:
        out = self.inner(x)
        if isinstance(out, tuple | list):
            first, second = out
        elif self.kind == "dict":
            first, second = out["first"], out["second"]
        else:
            first, second = out.first, out.second
        return torch.tanh(first) * second + x


def several(of: str) -> type[Several]:
    path: Any = (0,) if of in ("tuple", "list", "pair") else ("first",)
    other: Any = (1,) if of in ("tuple", "list", "pair") else ("second",)
    slots = (Slot("inner", path=path), Slot("inner", path=other))
    return type(f"Several_{of}", (Several,), {"kind": of, "slots": slots})


class Alias(Block):
    """What the site returns is what came in, and it is used on both ways."""

    slots = (Slot("site", own=False), Slot("inner", ends=("output", "input")))

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.site = nn.Linear(WIDTH, WIDTH), nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        h = self.inner(x)
        return self.site(h) * h + x


class AliasInPlace(Alias):
    """And then it is changed in place, through the alias."""

    def forward(self, x: Tensor) -> Tensor:
        h = self.inner(x)
        if self.pure:
            r = torch.relu(self.site(h))
            return r * r + 3 * r
        r = torch.relu_(self.site(h))
        return r * r + 3 * h


class Turned(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(BATCH, TIME, WIDTH)


class View(Alias):
    """The site returns a view of what came in, which is changed in place."""

    def __init__(self) -> None:
        super().__init__()
        self.site = Turned()

    def forward(self, x: Tensor) -> Tensor:
        h = self.inner(x).clone()
        if self.pure:
            s = self.site(h) * 2
            return s + s * x
        s = self.site(h)
        s.mul_(2)
        return h + s * x


class ReluSite(Alias):
    """A site on an activation that works in place, in a residual block: what it read has changed when it is added.

    That goes around the site, as any skip connection does.
    """

    slots = (Slot("site", own=False, ends=("output", "input")), Slot("inner"))

    def __init__(self) -> None:
        super().__init__()
        self.site = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        h = self.inner(x)
        self.site.inplace = not self.pure
        if self.pure:
            h = torch.relu(h)
        return self.site(h) * x + h


BLOCKS: tuple[type[Block], ...] = (
    *(Dense, InPlaceAfter, Twice, Norm, Conv, BatchNorm, Lookup, Cell, Attention, Memory, Alias, AliasInPlace, View),
    *(ReluSite, *map(several, ("tuple", "list", "dict", "both", "record", "pair"))),
)
NAMES = {block.__name__: block for block in BLOCKS}
globals().update(NAMES)  # so that the made ones pickle


def seed_cheaply(seed: int) -> None:
    """`torch.manual_seed` also writes down for each accelerator who called it, which takes longer than most passes."""
    torch.default_generator.manual_seed(seed)


def build(names: tuple[str, ...]) -> nn.Sequential:
    """A model of these blocks, with weights that depend on nothing else."""
    seed_cheaply(0)
    return nn.Sequential(*(NAMES[name]() for name in names))


def slots(names: tuple[str, ...]) -> list[Slot]:
    """Where sites may be put, by the name in the whole model."""
    return [
        dataclasses.replace(slot, name=f"{i}.{slot.name}") for i, name in enumerate(names) for slot in NAMES[name].slots
    ]


def purely(model: nn.Module) -> nn.Module:
    """The model itself, which from now on works without in-place operations and aliases."""
    for module in model.modules():
        if isinstance(module, Block):
            module.pure = True
    return model
