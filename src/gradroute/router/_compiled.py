"""What compiled code of a site does beside computing: it asks the guards, each time it runs.

Compiled code is the tensor operations of what was traced; of the Python around them nothing is left. So what a guard
must see when the code runs stands in the graph as an operation of its own, into which no compiler looks, and which none
leaves out or moves past another, since it says that it writes to a tensor.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .. import _torch_private as private
from ._attachment import AnySite
from ._in_flight import STATES, State

TOKEN = torch.zeros((), device="cpu")
"""What the operation says it writes to."""


class CompiledSite:
    """A site as compiled code knows it when it runs: what was constant while Dynamo traced.

    Attributes:
        labeled_inside: Whether its block of labels is part of the compiled code, so that the router does not hold them.
        learns: Whether gradients were enabled.
        trains: Whether it would learn, in training.
    """

    def __init__(  # noqa: PLR0917  # as the operation takes them
        self, state: State, position: int, name: str, group: int, labeled_inside: bool, learns: bool, trains: bool
    ) -> None:
        self.state = state
        self.position = position
        self.name = name
        self.group = group
        self.labeled_inside = labeled_inside
        self.learns = learns
        self.trains = trains


CHECKS: dict[str, Callable[[CompiledSite], None]] = {}
"""What to ask, by the place in the code: the guards fill it."""

_LIBRARY = torch.library.Library("gradroute", "FRAGMENT")  # type: ignore[no-untyped-call]
_LIBRARY.define(  # type: ignore[no-untyped-call]
    "ask_guards(Tensor(a!) token, str check, str router, int position, str name, int group, bool labeled_inside, "
    "bool learns, bool trains) -> ()"
)


@torch.library.impl(_LIBRARY, "ask_guards", "CompositeExplicitAutograd")
def _ask_guards(token: Tensor, check: str, router: str, *site: int | str | bool) -> None:
    state = STATES.get(router)
    if state is not None:
        CHECKS[check](CompiledSite(state, *site))  # type: ignore[arg-type]


@torch.library.register_fake("gradroute::ask_guards", lib=_LIBRARY)  # type: ignore[untyped-decorator]
def _(token: Tensor, *_: object) -> None:
    return None


def ask_when_it_runs(check: str, hook: AnySite, *, trains: bool = False) -> None:
    """In code that is being traced: put a check into it, to be made each time that it runs."""
    if private.is_exporting():  # an exported program is run where there is no router
        return
    torch.ops.gradroute.ask_guards(
        TOKEN,
        check,
        hook.state.name,
        hook.position,
        hook.name,
        hook.group,
        hook.state.compiled_blocks > 0,
        torch.is_grad_enabled(),
        trains,
    )
