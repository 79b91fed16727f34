"""A router that is removed while something of its blocks is still to be computed."""

from __future__ import annotations

from typing import Any

from ...errors import UsageError
from .._attachment import Attachment


def warn_of_removal_in_a_block(attachment: Attachment) -> None:
    """What a block computes once its router is gone looks routed, and is not."""
    if attachment.active:
        attachment.state.warn(
            "removed in a block",
            "this router is removed inside of a `with` block of its own: what the block computes from now on is not "
            "routed, and nothing is ablated in it. End the block first.",
            stacklevel=3,
        )


def refuse_recomputation_without_the_router(attachment: Attachment) -> None:
    """What activation checkpointing runs again later would be unrouted: that raises then, or is warned of now."""
    for region, passes in attachment.state.first_passes.regions():
        if not any(held.masks or held.ablated for held in passes):
            continue
        if hasattr(region, "register_prehook"):  # reentrant: the second pass makes the graph
            region.register_prehook(_refuse_recomputation)
        elif any(held.ablated or any(mask.silences for mask in held.masks) for held in passes):
            attachment.state.warn(
                "recomputed later",
                "this router is removed while activation checkpointing is still to run a forward pass again in "
                "backward, in which nothing will be silent or ablated then. Call backward first, or drop its graph.",
                stacklevel=3,
            )


def _refuse_recomputation(_: Any) -> None:
    raise UsageError(
        "activation checkpointing recomputes a forward pass inside backward, and the router that it first ran under "
        "was removed. Call backward first, and then router.remove()."
    )
