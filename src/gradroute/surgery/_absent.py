"""`Absent`: stands in a smaller model where a whole module was taken out."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .. import _torch_private as private
from ..errors import SiteError
from ..router._nested import map_tensors


class _Zeros(NamedTuple):
    """How one tensor of zeros is made: like an argument, but for the size of one dimension, or with one more.

    Attributes:
        argument: Which of the tensors among the arguments.
        dim: The dimension of another size; None where the shape is the argument's.
        size: Its size.
        inserted: Whether the argument does not have this dimension.
        follows: Whether it has the argument's dtype.
    """

    argument: int
    dim: int | None
    size: int
    inserted: bool
    follows: bool

    def shape(self, argument: Tensor) -> tuple[int, ...]:
        """The shape of the zeros for an argument."""
        shape = list(argument.shape)
        if self.dim is None:
            return tuple(shape)
        if self.inserted:
            shape.insert(len(shape) + 1 + self.dim if self.dim < 0 else self.dim, self.size)
        else:
            shape[self.dim] = self.size
        return tuple(shape)


class Absent(nn.Module):
    """Stands in a smaller model where `contract` took a whole module out: it returns zeros, and has no parameters.

    The zeros have the shape of a tensor among the arguments, but for the size of one dimension, as what an expert, an
    adapter, a linear layer or an embedding makes.

    Args:
        kind: What the module was, for the repr.
        arguments: The tensors among the arguments of one call of the module.
        output: What it returned then: a tensor, or nested containers of some.
        dim: The dimension that may be of another size, or that the argument does not have; None: any one.

    Raises:
        SiteError: The shape of the output is of another kind.

    Examples:
        >>> absent = Absent("Linear", [torch.ones(2, 3)], torch.ones(2, 5))
        >>> absent
        Absent(Linear)
        >>> absent(torch.ones(4, 7, 3)).shape
        torch.Size([4, 7, 5])
    """

    like: Tensor

    def __init__(self, kind: str, arguments: list[Tensor], output: Any, *, dim: int | None = None) -> None:
        super().__init__()
        tensors = private.tensors_in(output)
        self.kind = kind
        self.zeros = [_zeros_like(tensor, arguments, dim) for tensor in tensors]
        if len({tensor.dtype for tensor in tensors}) != 1:
            raise SiteError(f"it returns {len(tensors)} tensors of several dtypes")
        # The dtype where no argument says it, such as behind an embedding's indices: it goes along with `.to(...)`.
        self.register_buffer("like", torch.empty(0, dtype=tensors[0].dtype), persistent=False)
        self.output = map_tensors(output, lambda tensor: tensor.new_empty(0))

    def __repr__(self) -> str:
        return f"Absent({self.kind})"

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Zeros, for whatever arguments the module took.

        Raises:
            SiteError: The module returned a container that cannot be copied, and zeros would change what it kept.
        """
        arguments = tensors_of_call(args, kwargs)
        coming = iter(self.zeros)

        def zeros(_: Tensor) -> Tensor:
            made = next(coming)
            argument = arguments[made.argument]
            dtype = argument.dtype if made.follows else self.like.dtype
            return torch.zeros(made.shape(argument), dtype=dtype, device=argument.device)

        return map_tensors(self.output, zeros)


def tensors_of_call(args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
    """The tensors among the arguments of a call: first those by position."""
    return [*private.tensors_in(args), *private.tensors_in(kwargs)]


def _zeros_like(output: Tensor, arguments: list[Tensor], dim: int | None) -> _Zeros:
    """The simplest way to make a tensor of the output's shape of one of the arguments."""
    shape = tuple(output.shape)
    found = [
        _Zeros(number, differs, 0 if differs is None else shape[differs], inserted, x.dtype == output.dtype)
        for number, x in enumerate(arguments)
        for differs, inserted in _one_dimension(tuple(x.shape), shape, dim)
    ]
    if found:  # one of the very shape, or else one of as many dimensions
        return min(found, key=lambda zeros: (zeros.dim is not None, zeros.inserted))
    raise SiteError(
        f"it makes a tensor of shape {shape} of {', '.join(str(tuple(x.shape)) for x in arguments) or 'none'}"
    )


def _one_dimension(
    before: tuple[int, ...], after: tuple[int, ...], dim: int | None
) -> Iterator[tuple[int | None, bool]]:
    """The one dimension, which may be `dim` alone, in which two shapes differ, and whether the first does not have it.

    The last dimension is -1, so that it is the last of a tensor of more dimensions too.
    """
    if before == after:
        yield None, False
        return
    for d in reversed(range(len(after))):
        if dim is None or d == dim % len(after):
            number = -1 if d == len(after) - 1 else d
            if len(before) == len(after) and before[:d] + before[d + 1 :] == after[:d] + after[d + 1 :]:
                yield number, False
            elif before == after[:d] + after[d + 1 :]:
                yield number, True
