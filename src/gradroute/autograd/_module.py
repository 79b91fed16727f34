"""`RouteGradient`: routing as a layer."""

from __future__ import annotations

from torch import Tensor, nn

from ..spec._spec import RoutingSpec
from ._functional import route


class RouteGradient(nn.Module):
    """`gradroute.route` as a module, for where the spec belongs to the architecture.

    It has no parameters and no buffers, so that it adds no state-dict keys.

    Args:
        spec: Which units each label may teach.
        dim: The dimension of the input that holds the units.

    Shape:
        - x: ``[*, spec.width, *]`` with the units along `dim`, any floating dtype.
        - labels: see `gradroute.route`.
        - Output: as x.

    Examples:
        >>> import torch
        >>> layer = RouteGradient(RoutingSpec.one_per_label(2))
        >>> layer(torch.ones(1, 2), torch.tensor([0]))
        tensor([[1., 1.]])
    """

    def __init__(self, spec: RoutingSpec, dim: int = -1) -> None:
        super().__init__()
        self.spec = spec
        self.dim = dim

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        """Forward: x, with silent units off. Backward: the gradient times the mask of the labels.

        Raises:
            LabelError: As `gradroute.route`.
            RoutingError: As `gradroute.route`.
        """
        return route(x, labels, self.spec, dim=self.dim)

    def extra_repr(self) -> str:
        """The constructor arguments."""
        return f"{self.spec!r}, dim={self.dim}"
