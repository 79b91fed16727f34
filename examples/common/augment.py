"""Random small turns, scalings and shifts, for a whole batch at once."""

import math

import torch
from torch import Generator, Tensor
from torch.nn import functional as F


def random_affine(
    images: Tensor,
    generator: Generator | None = None,
    *,
    degrees: float = 10.0,
    scale: float = 0.1,
    shift: float = 2.0,
) -> Tensor:
    """Move each image by its own random affine map, drawn uniformly; what comes in from outside is 0.

    Args:
        images: [N, C, H, W].
        generator: The source of randomness; torch's global one by default.
        degrees: Largest turn, to either side.
        scale: Largest change of size, as a fraction.
        shift: Largest shift along each axis, in pixels.
    """
    draws = 2 * torch.rand(4, len(images), generator=generator) - 1
    angle = draws[0] * math.radians(degrees)
    size = 1 + draws[1] * scale
    cos, sin = torch.cos(angle) / size, torch.sin(angle) / size
    # affine_grid measures in half widths.
    right, down = draws[2] * shift * 2 / images.shape[-1], draws[3] * shift * 2 / images.shape[-2]
    maps = torch.stack([cos, -sin, right, sin, cos, down], dim=1).view(-1, 2, 3)
    grid = F.affine_grid(maps, list(images.shape), align_corners=False)
    # Bilinear weights sum to 1 only up to rounding, and the losses want pixels in [0, 1].
    return F.grid_sample(images, grid, align_corners=False).clamp(0, 1)
