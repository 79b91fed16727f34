"""`SiteMask`: a site's mask on its way to a module's parameters. And the pieces that a routed output is made of."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..autograd._functional import masked_by, silenced
from ..autograd._functions import route_by
from ..errors import LabelError, RoutingError
from ..spec._masks import Mask, align
from ._nested import Step


@dataclass(frozen=True)
class SiteMask:
    """One site's mask on its way to a module's parameters.

    Attributes:
        mask: The mask of the batch.
        dim: The dimension that holds the units.
        path: Which output or argument it is about.
        site: The site's name, for errors.
        time_first: Whether the first dimension is time by torch's convention.
    """

    mask: Mask
    dim: int
    path: tuple[Step, ...]
    site: str
    time_first: bool

    def check(self, x: Tensor) -> int:
        """Check the mask against the tensor; return `dim` counted from the front."""
        self.check_order(x)
        try:
            self.mask.check_device(x.device)
            return self.mask.check_fits(x.shape, self.dim, broadcast=True)
        except RoutingError as error:
            raise type(error)(f"site {self.site!r}: {error}") from None

    def check_order(self, x: Tensor) -> None:
        """Refuse labels per example where the first dimension is not the batch."""
        if self.time_first and x.ndim == 3 and len(self.mask.shape) == 1:
            shape = tuple(self.mask.labels.shape)
            expanded = ", ".join(map(str, (x.shape[0], *[-1] * len(shape))))
            raise LabelError(
                f"site {self.site!r}: labels of shape {shape} are per example, but the first dimension of this tensor "
                f"of shape {tuple(x.shape)} is time or layers, not the batch. Give labels for both, "
                f"labels.expand({expanded}), or build the module with batch_first=True."
            )

    def on(self, x: Tensor) -> Tensor:
        """A tensor times the mask, at the cost of one multiplication: outside of transforms, without a graph."""
        return masked_by(x, self.mask, self.check(x))

    def silenced(self, x: Tensor) -> Tensor:
        """A tensor with the silent units of the batch exactly 0, or the tensor itself."""
        if not self.mask.silences or x.is_nested:
            return silenced(x, self.mask, self.dim)
        return silenced(x, self.mask, self.check(x))

    def weights(self, x: Tensor) -> Tensor:
        """The mask, such that it broadcasts against x."""
        dtype = x.dtype if x.is_floating_point() else torch.float32
        return align(self.mask.tensor(dtype, x.device), x.ndim, self.check(x))


def detached(parameter: Tensor | None) -> Tensor | None:
    """The parameter's value, without its graph."""
    return None if parameter is None else parameter.detach()


def product(factors: list[Tensor]) -> Tensor | None:
    """The product of masks; None for no mask."""
    if not factors:
        return None
    product = factors[0]
    for factor in factors[1:]:
        product = product * factor
    return product


def times(x: Tensor, mask: Tensor | None) -> Tensor:
    """A tensor times a mask, and exactly 0 where that is 0, even for an inf."""
    return x if mask is None else torch.where(mask != 0, x * mask.to(x.dtype), 0)


def scaled(part: Tensor, mask: Tensor | None) -> Tensor:
    """A part whose gradient is multiplied by a mask."""
    return part if mask is None else route_by(part, mask)
