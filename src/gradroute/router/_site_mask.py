"""`SiteMask`: a site's mask on its way to a module's parameters. And the pieces that a routed output is made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from .. import _torch_private as private
from ..autograd._functional import masked_by, silenced
from ..autograd._functions import masked, route_by
from ..errors import LabelError, RoutingError
from ..spec._deferred_mask import BatchMask, DeferredMask
from ..spec._masks import Mask, align
from ._nested import Key


class Use(NamedTuple):
    """A tensor that a site saw before there were labels: they are held against it when they come.

    Attributes:
        dim: As in `SiteMask`.
        path: As in `SiteMask`.
        site: As in `SiteMask`.
        time_first: As in `SiteMask`.
        shape: Its shape.
        device: Its device.
        broadcast: Whether a mask of one unit fits it whatever its width.
    """

    dim: int
    path: tuple[Key, ...]
    site: str
    time_first: bool
    shape: torch.Size
    device: torch.device
    broadcast: bool

    def check(self, mask: Mask) -> None:
        """Check the mask that there is now, as it would have been in the forward pass.

        Raises:
            LabelError: The labels do not fit.
        """
        now = SiteMask(mask, self.dim, self.path, self.site, self.time_first)
        now.check_shape(self.shape, self.device, broadcast=self.broadcast)


@dataclass(frozen=True)
class SiteMask:
    """One site's mask on its way to a module's parameters.

    Attributes:
        mask: The mask of the batch.
        dim: The dimension that holds the units.
        path: Which output or argument it is about.
        site: The site's name, for errors.
        time_first: Whether the first dimension is time by torch's convention.
        parameters: The names of the parameters that it is for; None for all.
    """

    mask: BatchMask
    dim: int
    path: tuple[Key, ...]
    site: str
    time_first: bool
    parameters: tuple[str, ...] | None = None

    def routes(self, name: str) -> bool:
        """Whether it is for the parameter of this name."""
        return self.parameters is None or name in self.parameters

    def check(self, x: Tensor) -> int:
        """Check the mask against the tensor, now and when labels come; return `dim` counted from the front."""
        if x.is_nested:
            raise RoutingError(
                f"site {self.site!r}: nested tensors cannot be routed: route their values(), with one label for each."
            )
        self.check_when_known(x, broadcast=True)
        return self.check_shape(x.shape, x.device, broadcast=True)

    def check_shape(self, shape: torch.Size, device: torch.device, *, broadcast: bool) -> int:
        """Check the mask against a tensor of this shape, on this device; return `dim` counted from the front."""
        self.check_order(shape)
        try:
            self.mask.check_device(device)
            return self.mask.check_fits(shape, self.dim, broadcast=broadcast)
        except RoutingError as error:
            raise type(error)(f"site {self.site!r}: {error}") from None

    def check_when_known(self, x: Tensor, *, broadcast: bool) -> None:
        """If there are no labels yet, have them held against this tensor when they come."""
        if isinstance(self.mask, DeferredMask) and self.mask.if_known() is None:
            use = Use(self.dim, self.path, self.site, self.time_first, x.shape, x.device, broadcast)
            self.mask.uses.add(use)

    def demand_labels(self, why: str) -> None:
        """Refuse a mask whose labels are not known yet.

        Raises:
            UsageError: It is one.
        """
        try:
            self.mask.known_in_forward(why)
        except RoutingError as error:
            raise type(error)(f"site {self.site!r}: {error}") from None

    def check_order(self, shape: torch.Size) -> None:
        """Refuse labels per example where the first dimension is not the batch."""
        mask = self.mask.if_known() if self.time_first else None
        if mask is not None and len(shape) == 3 and len(mask.shape) == 1:
            given = tuple(mask.labels.shape)
            expanded = ", ".join(map(str, (shape[0], *[-1] * len(given))))
            raise LabelError(
                f"site {self.site!r}: labels of shape {given} are per example, but the first dimension of this tensor "
                f"of shape {tuple(shape)} is time or layers, not the batch. Give labels for both, "
                f"labels.expand({expanded}), or build the module with batch_first=True."
            )

    def on(self, x: Tensor) -> Tensor:
        """A tensor times the mask, at the cost of one multiplication: outside of transforms, without a graph."""
        return masked_by(x, self.mask, self.check(x))

    def note_backward(self) -> None:
        """Note that a backward pass applies the mask by other operations than `on`."""
        self.mask.applied.backward = private.backward_number()

    def silenced(self, x: Tensor) -> Tensor:
        """A tensor with the silent units of the batch exactly 0, or the tensor itself."""
        if not self.mask.silences:
            return x
        dim = self.dim if x.is_nested else self.check(x)  # whose parts are checked one by one
        try:
            return silenced(x, self.mask, dim, broadcast=True)
        except RoutingError as error:
            raise type(error)(f"site {self.site!r}: {error}") from None

    def weights(self, x: Tensor) -> Tensor:
        """The mask, such that it broadcasts against x."""
        dtype = x.dtype if x.is_floating_point() else torch.float32
        return align(self.mask.known().tensor(dtype, x.device), x.ndim, self.check(x))


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


def those_for(masks: Sequence[SiteMask], name: str) -> list[SiteMask]:
    """The masks that are for the parameter of this name."""
    return [mask for mask in masks if mask.routes(name)]


def tell_apart(masks: Sequence[SiteMask], one: str, other: str) -> bool:
    """Whether a mask is for one of two parameters and not for the other."""
    return len([mask for mask in masks if mask.routes(one) != mask.routes(other)]) > 0  # a generator is not traced


def times(x: Tensor, mask: Tensor | None) -> Tensor:
    """A tensor times a mask, and exactly 0 where that is 0, even for an inf."""
    if mask is None:
        return x
    return masked(x, mask) if private.is_distributed(x) else torch.where(mask != 0, x * mask.to(x.dtype), 0)


def scaled(part: Tensor, mask: Tensor | None) -> Tensor:
    """A part whose gradient is multiplied by a mask."""
    # In forward mode the tangent of a view must be one. The part is nobody else's.
    return part if mask is None else route_by(part, mask, replacing=private.forward_mode())
