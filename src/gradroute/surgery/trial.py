"""What a model computes on an example, in evaluation: for comparing it before and after surgery."""

from __future__ import annotations

import contextlib
from collections.abc import Hashable, Iterator, Mapping
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from ..errors import SiteError
from ..router import Router, _SiteHook

Example: TypeAlias = "Tensor | tuple[Any, ...] | Mapping[str, Any]"


def model_of(router: Router) -> nn.Module:
    """The model that a router is attached to.

    Raises:
        UsageError: It was removed from it.
    """
    router._check_usable()
    return router.model


def off(router: Router, labels: tuple[Hashable, ...]) -> Iterator[tuple[_SiteHook, Tensor]]:
    """The sites that have units to switch off, and which of theirs stay on: bool [width]."""
    for hook, keep in zip(router._hooks, router._kept_without(frozenset(labels)), strict=True):
        if keep is not None:
            yield hook, keep


def arguments(example: Example) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments that an example stands for, by position and by name."""
    if isinstance(example, Mapping):
        return (), dict(example)
    return (example if isinstance(example, tuple) else (example,)), {}


@contextlib.contextmanager
def in_evaluation(model: nn.Module) -> Iterator[None]:
    """The model in evaluation mode, and without the cache of keys and values that transformers' models return."""
    modes = {module: module.training for module in model.modules()}
    config = getattr(model, "config", None)
    cached = getattr(config, "use_cache", None)
    try:
        model.eval()
        if cached:
            config.use_cache = False  # type: ignore[union-attr]
        yield
    finally:
        for module, training in modes.items():
            module.training = training
        if cached:
            config.use_cache = cached  # type: ignore[union-attr]


def outputs(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
    """All tensors that the model returns, with the same random numbers each time."""
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(0)
        result = model(*args, **kwargs)
    return [leaf for leaf in torch.utils._pytree.tree_leaves(result) if isinstance(leaf, Tensor)]


def compare(expected: list[Tensor], found: list[Tensor]) -> None:
    """Check that two lists of outputs agree.

    Raises:
        SiteError: They do not.
    """
    try:
        if len(found) != len(expected):
            raise AssertionError(f"{len(found)} tensors in place of {len(expected)}")
        for one, other in zip(found, expected, strict=True):
            # Other widths sum in another order: an error of some units in the last place of the largest value.
            floating = other.is_floating_point()
            finite = other[other.isfinite()].abs() if floating else other.new_zeros(0)
            noise = 8 * torch.finfo(other.dtype).eps * finite.max().item() if finite.numel() else 0.0
            rtol = 1.3e-6 if floating and other.dtype.itemsize > 2 else 1.6e-2
            torch.testing.assert_close(one, other, rtol=rtol, atol=max(noise, 1e-5), equal_nan=True)
    except AssertionError as error:
        difference = "; ".join(str(error).strip().splitlines()[:3])
        raise SiteError(
            "the model would not compute what the ablated one does on this example, so something in it depends on the "
            f"units in a way that its exported program does not show; nothing was changed. ({difference})"
        ) from None
