"""Level "parameters" on a module of which nothing is known, run twice: for its input, and for its parameters.

Both runs are ordinary operations, which every transform of PyTorch knows. They must be alike: see `_second_run`.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..autograd._functions import sum_of
from ..errors import SiteError
from ._nested import edit_arguments, edit_output, map_tensors, tensors_of
from ._second_run import Beginning, Call, refuse_memory
from ._site_mask import SiteMask, product, scaled, times
from ._twin import Forward, Handed, Twin, learning_tensors, routed_together, works_in_place


def run_twice(
    forward: Forward,
    call: Call,
    writers: list[SiteMask],
    readers: list[SiteMask],
    *,
    transformed: bool = False,
    beginning: Beginning | None = None,
) -> Any:
    module = forward.module
    refuse_memory(module, call)
    args, kwargs = call
    twin, start = Twin(forward), beginning or Beginning(module)
    learns = learning_tensors(module)
    by_route = routed_together([*writers, *readers], module, learns)
    # Not detached: which kernel computes an output, and so its last bits, may hang on what requires a gradient.
    fixed = {name: _without_gradient(tensor) for name, tensor in learns.items() if name in by_route}
    # What learns whole does so in both runs, a part of the gradient each; but not in one that does not see all.
    rest = {name: _without_gradient(tensor) for name, tensor in learns.items() if name not in by_route and readers}
    if beginning is None:
        handed = Handed(tensors_of(call))
        whole = twin.on(fixed, args, kwargs)
        if handed.written():  # and would be again
            raise works_in_place(module)
        if not transformed:
            forward.looks.check(module, learns, list(fixed), tensors_of(whole), [*tensors_of(call), *fixed.values()])
    else:
        with start.once_more():
            whole = twin.on(fixed | start.buffers(), args, kwargs)
    if transformed:
        start.refuse_random_numbers()
    if readers:  # upstream learns by the other run, and by it alone: from the arguments that are not routed, too
        args, kwargs = map_tensors((args, kwargs), Tensor.detach)
    for mask in readers:
        # The parameters learn as if from a pass that sees the routed units only.
        args, kwargs = edit_arguments(args, kwargs, mask.path, forward.arguments, partial(_seen, mask), site=mask.site)
    with start.once_more():
        own = twin.on(rest | start.buffers(), args, kwargs)
    if not writers and not isinstance(whole, Tensor):
        raise SiteError(
            f"site {readers[0].site!r}: level='parameters', on='input' needs a module that returns a tensor; "
            f"{type(module).__name__} returns a {type(whole).__name__}. Put sites on the layers inside of it."
        )
    if not writers:
        return sum_of(whole.detach(), whole, own)
    paths = list(dict.fromkeys(mask.path for mask in writers))
    for path in paths:
        masks = [mask for mask in writers if mask.path == path]
        learning = _at(own, path, masks[0].site)
        whole = edit_output(whole, path, partial(_joined, learning, masks, len(readers) > 0), site=masks[0].site)
    return _with_the_others(whole, own, [_at(whole, path, "") for path in paths], cut=len(readers) > 0)


def _at(output: Any, path: tuple[Any, ...], site: str) -> Tensor:
    found: list[Tensor] = []

    def keep(y: Tensor) -> Tensor:
        found.append(y)
        return y

    edit_output(output, path, keep, site=site)
    return found[0]


def _with_the_others(whole: Any, own: Any, routed: list[Tensor], *, cut: bool) -> Any:
    """Outputs beside the site's teach the parameters whole."""
    rest = iter(tensors_of(own))

    def join(y: Tensor) -> Tensor:
        other = next(rest)
        if any(y is one for one in routed) or not y.is_floating_point():
            return y
        return sum_of(y.detach(), y, other) if cut else other

    return map_tensors(whole, join)


def _seen(mask: SiteMask, x: Tensor) -> Tensor:
    return times(x.detach(), mask.weights(x))


def _joined(own: Tensor, masks: list[SiteMask], cut: bool, whole: Tensor) -> Tensor:
    """The whole output, whose gradient goes by route to the run that learns, and the rest of it to the other run.

    With ``cut=True`` nothing goes on to the input from the run that learns, so all of it goes to the other.
    """
    m = product([mask.weights(whole) for mask in masks])
    assert m is not None
    rest = whole if cut else scaled(whole, 1 - m)
    return sum_of(whole.detach(), scaled(own, m), rest)


def _without_gradient(tensor: Tensor) -> Tensor:
    return scaled(tensor, torch.zeros((), dtype=torch.bool, device=tensor.device))
