"""What the experiments of an audit share: units against others, noise, and which entries of which parameters."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn

from ...router._attachment import AttachedSite

Entries = dict[str, Tensor]
"""For parameters by their names, which of their entries, bool."""


def module_of(parameter: str) -> str:
    """The name of the module that holds a parameter.

    >>> module_of("encoder.0.weight")
    'encoder.0'
    """
    return parameter.rpartition(".")[0]


def held_alone(site: AttachedSite, model: nn.Module) -> set[nn.Parameter]:
    """The parameters that a site routes of its module, but for those that the model holds outside of that, too."""
    outside: set[nn.Module] = set()
    queue = [model]
    while queue:
        module = queue.pop()
        if module is not site.module and module not in outside:
            outside.add(module)
            queue += module.children()
    shared = {parameter for module in outside for parameter in module.parameters(recurse=False)}
    return set(site.own_parameters().values()) - shared


def against_others(units: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Units of a site, bool [width], and the others to compare them with; of all units, each half with the other."""
    if bool(units.all()) and len(units) > 1:
        half = torch.arange(len(units), device="cpu") < len(units) // 2
        yield half, ~half
        yield ~half, half
    else:
        yield units, ~units


def noise(x: Tensor, seed: int) -> Tensor:
    """Noise of a tensor's shape, between 0.5 and 1.5 in magnitude and of either sign; the same for a seed."""
    # Of numpy, since torch's generators are watched here.
    generator = np.random.default_rng(seed)
    drawn = generator.uniform(0.5, 1.5, tuple(x.shape)) * generator.choice([-1.0, 1.0], tuple(x.shape))
    return torch.from_numpy(np.asarray(drawn)).to(x.device, x.dtype)
