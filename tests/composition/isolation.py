"""The network of `forms` with both ends of its units held by an `Isolation`, and what of it a step moves."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

import gradroute as gr
from composition.forms import SPEC, Routed, batch
from composition.parameter_forms import sites
from gradroute.optim import Isolation

RETAIN, FORGET, UNLABELED = (torch.full((8,), label) for label in (0, 1, gr.UNLABELED))
# The units that each may teach: its own and the shared one.
UNITS_OF_RETAIN, UNITS_OF_FORGET, ALL_UNITS = [0, 1, 2, 5], [3, 4, 5], [0, 1, 2, 3, 4, 5]


def isolated(form: str, **options: object) -> tuple[Routed, torch.optim.Optimizer, Isolation]:
    """A network, an optimizer that decays its weights, and the isolation."""
    routed = Routed(form, sites=sites(SPEC))
    optimizer = torch.optim.AdamW(routed.net.parameters(), lr=0.1, weight_decay=0.1, **options)
    return routed, optimizer, Isolation(routed.router, optimizer)


def backward(routed: Routed, labels: Tensor, seed: int = 0, via: Callable[..., Tensor] | None = None) -> None:
    routed(batch(len(labels), seed)[0], labels, via=via).square().sum().backward()


def entries(routed: Routed, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """All weights and state that belong to units, units first: [WIDTH, *]."""
    found = {}
    for name, dim in (("encoder.weight", 0), ("encoder.bias", 0), ("decoder.weight", 1)):
        parameter = routed.net.get_parameter(name)
        for key, value in {"weights": parameter, **optimizer.state[parameter]}.items():
            if value.shape == parameter.shape:
                whole = value.full_tensor() if hasattr(value, "full_tensor") else value
                found[f"{name}, {key}"] = whole.detach().movedim(dim, 0).clone()
    return found


def units_that_differ(before: dict[str, Tensor], after: dict[str, Tensor]) -> list[int]:
    """The units of which anything differs; those whose weights do must be the same."""
    differ = {key: (after[key] != old).reshape(len(old), -1).any(1) for key, old in before.items()}
    units = torch.stack(list(differ.values())).any(0).nonzero().flatten().tolist()
    assert differ["encoder.weight, weights"].nonzero().flatten().tolist() == units
    return units


def moved(routed: Routed, optimizer: torch.optim.Optimizer, step: Callable[[], object]) -> list[int]:
    """The units of which anything changes in a call."""
    before = entries(routed, optimizer)
    step()
    return units_that_differ(before, entries(routed, optimizer))
