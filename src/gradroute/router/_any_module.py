"""Level "parameters" on a module of which nothing is known.

In eager mode the module runs once, on stand-ins for its parameters. The ordinary backward pass goes through that run
and takes the whole gradient upstream; what reaches a stand-in on that way is dropped. What the parameters learn is
taken from the same run, by a second backward pass that starts from the masked gradient of the outputs (`_Tap`).

Inside of `torch.func` transforms and `torch.compile`, where a backward pass cannot start another one, and for sites on
the input, whose parameters learn as if from a pass that sees the routed units only, the module must run twice. The runs
must then be alike: a module that draws random numbers under a transform, or that is handed an object with a memory of
its own, is refused.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.autograd import Function

from .. import _torch_private as private
from ..autograd._functional import TRANSFORMED
from ..autograd._functions import sum_of
from ..errors import SiteError, UsageError, preview
from ._nested import edit_arguments, edit_output, map_tensors
from ._second_run import Beginning, Call, chance_of_dropping, random_numbers, refuse_memory
from ._site import computed_weights, routed_parameters
from ._site_mask import SiteMask, product, scaled, times


class Forward(Protocol):
    """A module's forward as it is without routing."""

    module: nn.Module
    draws: bool
    arguments: list[str]
    reads_past_itself: dict[tuple[str, ...], bool]

    def plain(self, *args: Any, **kwargs: Any) -> Any:
        """The module's output."""


_RUNS_TWICE = (
    "level='parameters' on the input of a module of an unknown kind runs it a second time, on what its labels let it "
    "see. Put sites on the layers inside of it"
)


def routed_run(forward: Forward, call: Call, writers: list[SiteMask], readers: list[SiteMask]) -> Any:
    """The module's output, with the gradients of its parameters routed."""
    transformed = torch.compiler.is_compiling() or private.transforms_active()
    if readers or transformed or private.forward_mode():
        for mask in (*writers, *readers):
            mask.demand_labels(_RUNS_TWICE if readers else TRANSFORMED)
        if transformed and (forward.draws or chance_of_dropping(forward.module)):
            raise random_numbers(forward.module)
        return _run_twice(forward, call, writers, readers, transformed=transformed)
    # Dynamo also compiles what eager code calls, in pieces: not this, whose Functions it cannot trace.
    return private.untraced(_run_once)(forward, call, writers)


# ---------------------------------------------------------------------- once


def _run_once(forward: Forward, call: Call, writers: list[SiteMask]) -> Any:
    run = _Run(forward, call, writers)
    done: list[Tensor] = []

    def tap(y: Tensor, masks: list[SiteMask]) -> Tensor:
        for mask in masks:
            mask.check(y)
        if any(y is one for one in done):
            return y
        # What was handed in and comes out again was made by nothing of this module's.
        learns = y.requires_grad and not any(y is x for x in run.given)
        base = private.base(y)
        held = base is not None and any(private.is_of(x, base) for x in run.given)  # a view of what was handed in
        done.append(_Tap.apply(y, run, masks, held, *run.inputs) if learns else y)
        return done[-1]

    output = run.output
    for path in dict.fromkeys(mask.path for mask in writers):
        masks = [mask for mask in writers if mask.path == path]
        output = edit_output(output, path, partial(tap, masks=masks), site=masks[0].site)
    # Every other output teaches the parameters, too: whole.
    return map_tensors(output, partial(tap, masks=[]))


class _Run:
    """One run of a module on stand-ins for what it learns by.

    Attributes:
        given: The tensors among its arguments.
        own: What of it learns by route.
        inputs: All that its output hangs on: the arguments, what learns by route, and what learns whole.
        stand_ins: What it ran on in place of what learns by route.
        output: What came out.
    """

    def __init__(self, forward: Forward, call: Call, writers: list[SiteMask]) -> None:
        self.given = _tensors(call)
        learning = _learning(forward.module)
        self._routed = [(mask, routed_by(mask, forward.module, learning)) for mask in writers]
        by_route = set[str]().union(*(names for _, names in self._routed))
        self.own = {name: tensor for name, tensor in learning.items() if name in by_route}
        whole = [tensor for name, tensor in learning.items() if name not in by_route]
        self.inputs = [*self.given, *self.own.values(), *whole]
        self.stand_ins = [_Dropped.apply(tensor) for tensor in self.own.values()]
        self._again = partial(_run_twice, forward, call, writers, [], beginning=Beginning(forward.module))
        self.output = _Twin(forward).on(dict(zip(self.own, self.stand_ins, strict=True)), *call)
        known = forward.reads_past_itself  # found out once
        if tuple(self.own) not in known:
            known[tuple(self.own)] = _reaches(_tensors(self.output), self.own, self.given)
        if known[tuple(self.own)]:
            raise UsageError(
                f"{type(forward.module).__name__} reads a parameter of its own by another reference than the one it "
                "is registered under, such as a list of parameters, so that level='parameters' cannot stand in for it. "
                "Read it as an attribute, self.weight, or put sites on the layers inside of it."
            )
        self._places = {id(y): place for place, y in reversed(list(enumerate(_tensors(self.output))))}

    def groups(self, masks: list[SiteMask]) -> list[tuple[list[SiteMask], list[int]]]:
        """The places in `own`, together where the same of these masks are for them, and those masks."""
        found: dict[tuple[int, ...], list[int]] = {}
        for place, name in enumerate(self.own):
            which = tuple(i for i, (mask, names) in enumerate(self._routed) if mask in masks and name in names)
            found.setdefault(which, []).append(place)
        return [([self._routed[i][0] for i in which], places) for which, places in found.items()]

    def again(self, y: Tensor) -> Tensor:
        """One of the outputs of a second run, put together from operations that can be derived twice."""
        return _tensors(self._again())[self._places[id(y)]]


def _reaches(outputs: list[Tensor], own: dict[str, Tensor], given: list[Tensor]) -> bool:
    """Whether the graph of some outputs leads to what a module learns by, and not to what stood in for it."""
    targets = {id(tensor) for tensor in own.values()}
    known: set[Any] = {x.grad_fn for x in given}
    to_visit = [y.grad_fn for y in outputs if y.grad_fn is not None]
    while to_visit:
        node = to_visit.pop()
        if node in known or node.name() == "_DroppedBackward":
            continue
        known.add(node)
        if id(getattr(node, "variable", None)) in targets:
            return True
        to_visit += [inner for inner, _ in node.next_functions if inner is not None]
    return False


def _tensors(nest: Any) -> list[Tensor]:
    found: list[Tensor] = []

    def keep(x: Tensor) -> Tensor:
        found.append(x)
        return x

    map_tensors(nest, keep)
    return found


class _Dropped(Function):
    """Forward: identity. Backward: nothing goes on."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.detach()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> None:
        return None


class _Tap(Function):
    """Forward: identity on a module's output. Backward: the gradient goes on whole, and masked to the parameters.

    The module ran on stand-ins, so the parameters' part is a backward pass of its own through the module's graph, which
    is still there: the ordinary one has not yet come to it.
    """

    @staticmethod
    def forward(ctx: Any, y: Tensor, run: _Run, masks: list[SiteMask], held: bool, *tensors: Tensor) -> Tensor:
        # As attributes: activation checkpointing recomputes what is saved, and would have to find it in the graph.
        ctx.y, ctx.run, ctx.masks = y, run, masks
        ctx.set_materialize_grads(False)
        # As a view, on which in-place operations raise, where the caller holds the tensor.
        return y.view_as(y) if held else y.detach()

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None) -> tuple[Any, ...]:
        run: _Run = ctx.run
        found: list[Tensor | None] = [None] * len(run.inputs)
        if grad is None:
            return (None, None, None, None, *found)
        if torch.is_grad_enabled():  # derivatives of this are wanted
            return (None, None, None, None, *_differentiable(run, ctx.y, grad))
        for masks, places in run.groups(ctx.masks):
            masked = grad
            for mask in masks:
                masked = mask.on(masked)
            wanted = [run.stand_ins[place] for place in places]
            learned = torch.autograd.grad(ctx.y, wanted, masked, retain_graph=True, allow_unused=True)
            for place, gradient in zip(places, learned, strict=True):
                found[len(run.given) + place] = gradient
        return (grad, None, None, None, *found)


def _differentiable(run: _Run, y: Tensor, grad: Tensor) -> list[Tensor | None]:
    """The gradients of all that a run hangs on, with a graph of their own."""
    inputs = run.inputs
    wanted = [i for i, tensor in enumerate(inputs) if tensor.requires_grad]
    output = run.again(y)
    found = torch.autograd.grad(output, [inputs[i] for i in wanted], grad, create_graph=True, allow_unused=True)
    gradients: list[Tensor | None] = [None] * len(inputs)
    for i, gradient in zip(wanted, found, strict=True):
        gradients[i] = gradient
    return gradients


# ---------------------------------------------------------------------- twice


def _run_twice(
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
    twin, start = _Twin(forward), beginning or Beginning(module)
    learns = _learning(module)
    by_route = _routed_together([*writers, *readers], module, learns)
    # Not detached: which kernel computes an output, and so its last bits, may hang on what requires a gradient.
    fixed = {name: _without_gradient(tensor) for name, tensor in learns.items() if name in by_route}
    # What learns whole does so in both runs, a part of the gradient each; but not in one that does not see all.
    rest = {name: _without_gradient(tensor) for name, tensor in learns.items() if name not in by_route and readers}
    if beginning is None:
        whole = twin.on(fixed, args, kwargs)
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
    rest = iter(_tensors(own))

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


# ---------------------------------------------------------------------- a module, run on other tensors


class _Twin(nn.Module):
    """Runs a module past its hooks and its stand-in, on other parameters or buffers."""

    def __init__(self, forward: Forward) -> None:
        super().__init__()
        self.module = forward.module
        self.run = forward.plain

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.run(*args, **kwargs)

    def on(self, tensors: dict[str, Tensor], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The output, with some of the module's tensors replaced."""
        named = {f"module.{name}": tensor for name, tensor in tensors.items() if not name.startswith("=")}
        computed = [
            (owner, key, tensors[f"={name}"])
            for name, owner, key, _ in computed_weights(self.module)
            if f"={name}" in tensors
        ]
        before = [getattr(owner, key) for owner, key, _ in computed]
        try:
            for owner, key, value in computed:
                owner.__dict__[key] = value
            return torch.func.functional_call(self, named, args, kwargs)
        finally:
            for (owner, key, _), value in zip(computed, before, strict=True):
                owner.__dict__[key] = value


def routed_by(mask: SiteMask, module: nn.Module, learning: dict[str, Tensor]) -> set[str]:
    """Which of what a module learns by a site's mask is for: all, or what the site names.

    Raises:
        UsageError: A parameter that it names is gone, or a weight is computed of it together with others.
    """
    if mask.parameters is None:
        return set(learning)
    chosen = set(routed_parameters(module, mask.parameters))
    every = {name for name, _ in module.named_parameters(remove_duplicate=False)}
    computed = {name.removeprefix("=").removeprefix("."): name for name in learning if name.startswith("=")}
    found = {name for name in learning if name in chosen} | {computed[n] for n in mask.parameters if n in computed}
    named = {id(parameter) for name, parameter in module.named_parameters() if name in chosen}
    own = {id(parameter) for parameter in module.parameters() if parameter.requires_grad}
    for name in set(computed.values()) - found:
        sources = _leaves(learning[name]) & own
        if sources & named and not sources <= named:
            raise UsageError(
                f"site {mask.site!r}: {name[1:].lstrip('.')!r} of this {type(module).__name__} is computed of a "
                "parameter that the site names and of others that it does not: name all of them, or none."
            )
        if sources & named:
            found.add(name)
    gone = [name for name in mask.parameters if name not in every and name not in computed]
    if gone:
        raise UsageError(
            f"site {mask.site!r}: {gone[0]!r} is no parameter of this {type(module).__name__} any more. Remove the "
            "router, and make a new one with the names that there are now."
        )
    return found


def _routed_together(masks: list[SiteMask], module: nn.Module, learning: dict[str, Tensor]) -> set[str]:
    """What learns by route in a module that runs twice: the same for all sites, or there would be more than two runs.

    Raises:
        UsageError: The sites name different parameters.
    """
    chosen = [routed_by(mask, module, learning) for mask in masks]
    if len([names for names in chosen if names != chosen[0]]) > 0:
        raise UsageError(
            f"sites {preview([mask.site for mask in masks], 2)} route different parameters of one "
            f"{type(module).__name__}, which would have to run more than twice here (a site on its input, second "
            "derivatives, torch.compile or torch.func). Let them name the same parameters, or put sites on the layers "
            "inside of it."
        )
    return chosen[0] if chosen else set()


def _leaves(tensor: Tensor) -> set[int]:
    """The leaves of the graph that a tensor was computed by."""
    found: set[int] = set()
    seen: set[Any] = set()
    to_visit = [tensor.grad_fn]
    while to_visit:
        node = to_visit.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        found.add(id(getattr(node, "variable", None)))
        to_visit += [inner for inner, _ in node.next_functions]
    return found


def _learning(module: nn.Module) -> dict[str, Tensor]:
    """What a module learns by: its parameters, and by names that begin with "=" weights computed of others."""
    found: dict[str, Tensor] = {name: p for name, p in module.named_parameters() if p.requires_grad}
    return found | {f"={name}": value for name, _, _, value in computed_weights(module)}
