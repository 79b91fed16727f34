"""The second of two runs of a module: it starts from what the first one found, or is refused."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import UsageError

Call: TypeAlias = tuple[tuple[Any, ...], dict[str, Any]]


class Beginning:
    """What a run may change, as it was before the first of two runs, so that the second starts from the same."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._buffers = {name: buffer.clone() for name, buffer in module.named_buffers()}
        # Compiled code can note neither. It may break off between the two runs, and go on in eager mode: see below.
        self._attributes: list[tuple[nn.Module, dict[str, Any]]] = []
        self._random: RandomState | None = None
        if not torch.compiler.is_compiling():
            self._attributes = [(inner, dict(inner.__dict__)) for inner in module.modules()]
            self._random = RandomState()

    def buffers(self) -> dict[str, Tensor]:
        """Copies of the buffers, so that running statistics count each batch once."""
        return {name: buffer.clone() for name, buffer in self._buffers.items()}

    def refuse_random_numbers(self) -> None:
        """Under a transform of `torch.func` two runs draw different numbers.

        Raises:
            UsageError: The run drew some.
        """
        if self._random is not None and self._random.has_moved():
            raise random_numbers(self._module)

    @contextlib.contextmanager
    def once_more(self) -> Iterator[None]:
        """For the length of the block random numbers and the modules' attributes are as they were before."""
        if self._random is None:
            yield
            return
        after = RandomState()
        changed = [(inner, dict(inner.__dict__)) for inner, _ in self._attributes]
        try:
            self._random.rewind()
            for inner, attributes in self._attributes:
                put_back(inner, attributes)
            yield
        finally:
            after.rewind()
            for inner, attributes in changed:
                put_back(inner, attributes)


class RandomState:
    """The global random number generators of torch, numpy and Python, as they were when this was made."""

    def __init__(self) -> None:
        self._python = random.getstate()
        self._numpy = np.random.get_state()  # what the user's own code may draw from
        self._cpu = torch.get_rng_state()
        self._cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []  # type: ignore[no-untyped-call]

    def rewind(self) -> None:
        """Put all of them back."""
        random.setstate(self._python)
        np.random.set_state(self._numpy)
        torch.set_rng_state(self._cpu)
        if self._cuda:
            torch.cuda.set_rng_state_all(self._cuda)

    def has_moved(self) -> bool:
        """Whether torch or Python has drawn since."""
        now = RandomState()
        moved = any(not torch.equal(*pair) for pair in zip(self._cuda, now._cuda, strict=False))
        return moved or self._python != now._python or not torch.equal(self._cpu, now._cpu)


def put_back(module: nn.Module, before: dict[str, Any]) -> None:
    """Give a module the attributes that it had, and no others."""
    for key in [key for key in module.__dict__ if key not in before]:
        del module.__dict__[key]
    for key, value in before.items():
        if module.__dict__.get(key, module) is not value:
            module.__dict__[key] = value


_DRAWS = frozenset(
    {"dropout", "alpha_dropout", "feature_alpha_dropout", "dropout1d", "dropout2d", "dropout3d", "stochastic_depth"}
    | {"rand", "randn", "randint", "rand_like", "randn_like", "randint_like", "randperm", "bernoulli", "bernoulli_"}
    | {"multinomial", "normal", "normal_", "uniform_", "rrelu", "gumbel_softmax", "random", "rsample", "sample"}
)


def random_numbers(module: nn.Module) -> UsageError:
    return UsageError(
        f"{type(module).__name__} draws random numbers (dropout that is on, for one), and level='parameters' runs it "
        "twice, which under torch.compile and torch.func draws other numbers each time: put sites on the layers inside "
        "of it."
    )


def draws_random_numbers(module: nn.Module) -> bool:
    """Whether the code of a module's forward, or of one inside it, names a function that draws random numbers."""
    for inner in module.modules():
        code = getattr(type(inner).forward, "__code__", None)
        if not type(inner).__module__.startswith("torch.nn.") and _DRAWS & set(getattr(code, "co_names", ())):
            return True
    return False


def chance_of_dropping(module: nn.Module) -> bool:
    """Whether a module in training mode has a chance to drop something: dropout, a path, a block."""
    for inner in module.modules():
        chances = (
            [getattr(inner, "p", 0.0)] if "Drop" in type(inner).__name__ or "Stoch" in type(inner).__name__ else []
        )
        chances += [value for key, value in inner.__dict__.items() if "drop" in key]
        if inner.training and any(isinstance(chance, float) and chance > 0 for chance in chances):
            return True
    return False


_PLAIN = (Tensor, str, bytes, int, float, complex, bool, type(None), torch.dtype, torch.device, torch.Size, slice)


def refuse_memory(module: nn.Module, call: Call) -> None:
    """Refuse an argument with a memory of its own, such as a cache of keys and values, which a second run would change.

    Raises:
        UsageError: There is one.
    """

    def look(value: Any) -> None:
        if isinstance(value, dict):
            value = tuple(value.values())
        if isinstance(value, (tuple, list)):
            for inner in value:
                look(inner)
        elif not isinstance(value, _PLAIN) and not callable(value):
            raise UsageError(
                f"{type(module).__name__} is called with a {type(value).__name__}, which may remember what it is "
                "given, and level='parameters' must run the module twice here (a site on its input, torch.compile or "
                "torch.func). Call it without, such as use_cache=False, or put sites on the layers inside of it."
            )

    look(call)
