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
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from .. import _torch_private as private
from ..autograd._functional import TRANSFORMED
from ._nested import edit_output, map_tensors, tensors_of
from ._past_itself import leads_to, past_itself
from ._run_twice import run_twice
from ._second_run import Beginning, Call, chance_of_dropping, random_numbers
from ._site_mask import SiteMask
from ._twin import Forward, Handed, Twin, learning_tensors, routed_by, works_in_place

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
        if transformed and forward.holds_itself:
            raise past_itself(forward.module, "may read")
        output = run_twice(forward, call, writers, readers, transformed=transformed)
        if not transformed:
            _note_backward(output, [*writers, *readers])
        return output
    # Dynamo also compiles what eager code calls, in pieces: not this, whose Functions it cannot trace.
    return private.untraced(_run_once)(forward, call, writers)


def _note_backward(output: Any, masks: list[SiteMask]) -> None:
    """Where no Function of this library applies the masks, note that backward comes to what they have routed."""

    def note(_: Tensor) -> None:
        for mask in masks:
            mask.note_backward()

    with private.unseen_by_modes():  # of which one looks for hooks that may change gradients
        for y in tensors_of(output):
            if y.requires_grad:
                y.register_hook(note)  # type: ignore[no-untyped-call]


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
        self.given = tensors_of(call)
        learning = learning_tensors(forward.module)
        self._routed = [(mask, routed_by(mask, forward.module, learning)) for mask in writers]
        by_route = set[str]().union(*(names for _, names in self._routed))
        self.own = {name: tensor for name, tensor in learning.items() if name in by_route}
        whole = {name: tensor for name, tensor in learning.items() if name not in by_route}
        self._names = [*self.own, *whole]
        self.inputs = [*self.given, *self.own.values(), *whole.values()]
        self.stand_ins = [_Dropped.apply(tensor) for tensor in self.own.values()]
        self._forward, self._call, self._writers, self._beginning = forward, call, writers, Beginning(forward.module)
        handed = Handed(self.given)
        self.output = Twin(forward).on(dict(zip(self.own, self.stand_ins, strict=True)), *call)
        outputs = tensors_of(self.output)
        dropped = {stand_in.grad_fn for stand_in in self.stand_ins}
        if leads_to(handed.written(), dropped.__contains__, handed.nodes):
            raise works_in_place(forward.module)
        forward.looks.check(forward.module, learning, self.own, outputs, [*self.given, *self.stand_ins])
        self._places = {id(y): place for place, y in reversed(list(enumerate(outputs)))}

    def groups(self, masks: list[SiteMask]) -> list[tuple[list[SiteMask], list[int]]]:
        """The places in `own`, together where the same of these masks are for them, and those masks."""
        found: dict[tuple[int, ...], list[int]] = {}
        for place, name in enumerate(self.own):
            which = tuple(i for i, (mask, names) in enumerate(self._routed) if mask in masks and name in names)
            found.setdefault(which, []).append(place)
        return [([self._routed[i][0] for i in which], places) for which, places in found.items()]

    def again(self, y: Tensor, inputs: list[Tensor]) -> Tensor:
        """One of the outputs of another run, on others than `inputs`, made of operations that can be derived twice."""
        given, learning = iter(inputs), dict(zip(self._names, inputs[len(self.given) :], strict=True))
        twin, call = Twin(self._forward), map_tensors(self._call, lambda _: next(given))
        twin.run = lambda *args, **kwargs: run_twice(
            self._forward, (args, kwargs), self._writers, [], beginning=self._beginning
        )
        return tensors_of(twin.on(learning, *call))[self._places[id(y)]]


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
            for mask in ctx.masks:
                mask.note_backward()
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
    # Of views, one for each place: hooks on the tensors themselves are for the sum, when backward is there.
    inputs = [tensor.view_as(tensor) if tensor.requires_grad else tensor for tensor in run.inputs]
    wanted = [i for i, tensor in enumerate(inputs) if tensor.requires_grad]
    output = run.again(y, inputs)
    found = torch.autograd.grad(output, [inputs[i] for i in wanted], grad, create_graph=True, allow_unused=True)
    gradients: list[Tensor | None] = [None] * len(inputs)
    for i, gradient in zip(wanted, found, strict=True):
        gradients[i] = gradient
    return gradients
