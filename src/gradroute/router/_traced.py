"""What runs once, while Dynamo traces a site: compiled code itself notes nothing, and could warn of nothing.

Imported only by code that is being compiled, since `torch.compiler.assume_constant_result` imports Dynamo.
"""

from __future__ import annotations

import torch

from ._attachment import STATES


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]  # so that Dynamo calls it, and does not trace it
def note(router: str, site: int, unrouted_site: str | None) -> int:
    """A site of a router is being compiled; with a name, in a training pass that no labels route."""
    state = STATES.get(router)
    if state is not None:
        state.traced.add(site)
        if unrouted_site is not None:
            state.warn_unrouted(unrouted_site)
    return 0
