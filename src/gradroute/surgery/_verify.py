"""What a model computes on an example, in evaluation: for comparing it before and after surgery."""

from __future__ import annotations

import contextlib
from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from .. import _torch_private as private
from ..errors import SiteError, UsageError
from ..router._attachment import AttachedSite, attachment_of
from ..router._nested import edit_arguments, edit_output
from ..router._router import Router
from ..unit_dims import kind_of

Example: TypeAlias = "Tensor | tuple[Any, ...] | Mapping[str, Any]"
"""What the model is called with: a tensor, positional arguments, or arguments by name."""


def model_of(router: Router) -> nn.Module:
    """The model that a router is attached to, outside of its blocks.

    Raises:
        UsageError: The router was removed from it, or one of its blocks is open, or the model is sharded.
    """
    attachment_of(router).check_usable()
    if attachment_of(router).active:
        raise UsageError(
            "surgery inside of a `with router(labels)` or `with router.ablated(...)` block would mix the block with "
            "what it does itself: leave the block first."
        )
    if any(kind_of(module) is not type(module) for module in router.model.modules()):
        raise UsageError("FSDP holds the weights of this model in shards of its own: do surgery before fully_shard.")
    return router.model


def off(router: Router, labels: tuple[Hashable, ...]) -> list[tuple[AttachedSite, Tensor]]:
    """The sites that have units to switch off, and which of theirs stay on: bool [width].

    Raises:
        SpecError: No site knows one of the labels.
        UsageError: No label was given, or nothing would be switched off.
    """
    router.ablated(*labels)  # which checks them
    attachment = attachment_of(router)
    kept = attachment.kept_without(frozenset(labels))
    owning = [site for site in attachment.sites if site.site.parameters is None]
    return [(site, keep) for site in owning if (keep := kept[site.group]) is not None]


def arguments(example: Example) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments that an example stands for, by position and by name."""
    if isinstance(example, Mapping):
        return (), dict(example)
    return (example if isinstance(example, tuple) else (example,)), {}


@contextlib.contextmanager
def in_evaluation(model: nn.Module, *, caches: bool = False) -> Iterator[None]:
    """The model in evaluation mode, and without the cache of keys and values that transformers' models return.

    With ``caches=True`` it keeps one if it does so by itself.
    """
    modes = {module: module.training for module in model.modules()}
    config = getattr(model, "config", None)
    cached = not caches and getattr(config, "use_cache", None)
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
    with torch.no_grad(), torch.random.fork_rng(range(torch.cuda.device_count())):
        torch.manual_seed(0)
        result = model(*args, **kwargs)
    # Copies, since what a model returns may be one of its own weights or buffers, which are about to change.
    return [leaf.clone() for leaf in private.tensors_in(result)]


def refuse_silent(
    sites: Sequence[AttachedSite],
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    expected: list[Tensor],
) -> None:
    """Refuse an example on which a site's units make no difference: outputs that agree on it would say nothing.

    Args:
        sites: The sites, each with units that stay.
        model: The model, with the units that go switched off.
        args: The example, by position.
        kwargs: The example, by name.
        expected: What the model computes on it.

    Raises:
        SiteError: It is such an example.
    """
    for attached in sites:
        name, path = attached.name, attached.site.path

        def silence_output(
            module: nn.Module, args: Any, output: Any, path: tuple[Any, ...] = path, name: str = name
        ) -> Any:
            return edit_output(output, path, torch.zeros_like, site=name)

        def silence_input(
            module: nn.Module, args: Any, kwargs: Any, attached: AttachedSite = attached
        ) -> tuple[tuple[Any, ...], dict[str, Any]]:
            names = list(attached.arguments)
            return edit_arguments(args, kwargs, attached.site.path, names, torch.zeros_like, site=attached.name)

        if attached.site.on == "output":
            handle = attached.module.register_forward_hook(silence_output)
        else:
            handle = attached.module.register_forward_pre_hook(silence_input, with_kwargs=True)
        try:
            silent = outputs(model, args, kwargs)
        finally:
            handle.remove()
        if all(torch.equal(one.nan_to_num(), other.nan_to_num()) for one, other in zip(silent, expected, strict=True)):
            raise SiteError(
                f"site {name!r}: on this example the model computes the same whether the units of this "
                f"{type(attached.module).__name__} are on or off, such as where an activation function turns all of "
                "them into 0. Whether a smaller model computes the same on other inputs cannot be seen on it: give an "
                "example on which some of the units that stay make a difference."
            )


def compare(expected: list[Tensor], found: list[Tensor]) -> None:
    """Check that two lists of outputs agree, but for rounding: other widths sum in another order.

    Raises:
        SiteError: They do not.
    """
    try:
        if len(found) != len(expected):
            raise AssertionError(f"{len(found)} tensors in place of {len(expected)}")
        for one, other in zip(found, expected, strict=True):
            atol = 0.0
            if other.is_floating_point() and other.isfinite().any():
                # Some hundred units in the last place of the largest value; in half precision fewer, or all would pass.
                units = 100 if other.dtype.itemsize > 2 else 8
                atol = units * torch.finfo(other.dtype).eps * other[other.isfinite()].abs().max().item()
            torch.testing.assert_close(one, other, rtol=0, atol=atol, equal_nan=True)
    except AssertionError as error:
        difference = "; ".join(str(error).strip().splitlines()[:3])
        raise SiteError(
            "the model would not compute what the ablated one does on this example, so something in its code depends "
            "on the units in a way that was not found, such as on their number; nothing was changed. Switch the units "
            f"off where the model is used: `with router.ablated(...)`. ({difference})"
        ) from None
