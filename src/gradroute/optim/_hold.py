"""`Hold`: some entries of parameters stay as they are, whatever an optimizer does with the others."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor, nn
from torch.optim import LBFGS, Optimizer
from torch.utils.hooks import RemovableHandle

from .. import _torch_private as private
from ..errors import UsageError
from ._held_entries import HeldEntries, ZeroHeldGradient
from ._open_views import open_part, step_open
from ._slices import local
from ._state import Arguments, after_closure, closure_of, refuse_inner, state_of_entries, untouched_state

__all__ = ["Hold"]


class _Before(NamedTuple):
    """Held entries of a parameter and of its state, as they were before the step."""

    values: Tensor | None
    state: dict[str, Tensor | None]


class _Step(NamedTuple):
    """What one step of the optimizer holds.

    Attributes:
        before: Entries to put back.
        hidden: Parameters that the optimizer shall not see, since they were stepped, with their gradients.
    """

    before: dict[nn.Parameter, _Before]
    hidden: list[tuple[nn.Parameter, Tensor]]


class Hold:
    """Freezes entries of parameters: rows, or whatever a mask names. The optimizer trains the others as ever.

    The weights of held entries and their part of the optimizer's state stay bitwise as they are, under momentum, weight
    decay, clipping, closures and a restored checkpoint. It is for *partial freezing*: train only the rows of new
    tokens, keep pruned weights pruned, train a new class and not the old ones.

    **A held entry is as if it had no gradient.** Its gradient is made 0 when it is accumulated, and once more before
    the step. So it counts neither in the norm by which gradients are clipped, nor in what an optimizer makes of several
    entries: the second moments of Adafactor, the step size of Prodigy, the matrix of Muon. Before each step the held
    entries are copied, and after it they are put back.

    **State that entries share** goes on, made of the others alone: counts of steps, the factors of Adafactor (but
    those of a row that is held as a whole stay still), the step size of Prodigy. An update of Muon is made of the whole
    matrix of momenta, to which held entries add the momentum that they had when they were held. LBFGS must be held
    before its first step: then its history has zeros for held entries.

    State that the first step creates is, for held entries, what a step without a gradient and without weight decay
    makes of it, if the optimizer can be made a second time from its options; if not, what this step makes of it.

    Costs: where rows are held, an elementwise optimizer of torch is shown views of the others. That takes Python's time
    for them, and the step computes less than one of the whole. Elsewhere each step makes two copies of what is held,
    weights and state; where a mask names it, of the whole parameter.

    Args:
        optimizer: The optimizer itself, not what a trainer wraps it in. Several holds and isolations may share it.
        entries: For each parameter, which of its entries are held. Rows (entries along the first dimension): an
            integer, a slice, a sequence of integers or a 1-D integer tensor, from 0 on. Or a bool mask, True where
            held: of the parameter's shape, or of the beginning of that shape, such as [rows]. For a parameter that
            `fully_shard` distributed they are those of the whole parameter, the same in each process.

    Raises:
        UsageError: The optimizer does not have the parameter, a mask or rows do not fit, or the optimizer keeps state
            of which it is not known what belongs to an entry (others when their first step shows it, such as those
            whose 8-bit state shares scales). In a step: a parameter has another shape, or left the optimizer.

    Note:
        A tied weight is one parameter, held under all its names. What writes weights without a step is not held off:
        `load_state_dict`, `nn.Embedding(max_norm=...)`, the `train()` and `eval()` of schedule-free optimizers. A
        copied optimizer has no hooks, and so no hold. Where a step raises on its way, nothing is put back: what it
        wrote until then stays.

    Examples:
        >>> import torch
        >>> embedding = torch.nn.Embedding(5, 2)
        >>> optimizer = torch.optim.AdamW(embedding.parameters(), lr=0.1, weight_decay=0.1)
        >>> hold = Hold(optimizer, {embedding.weight: slice(0, 3)})  # 3 and 4 are new tokens
        >>> before = embedding.weight.detach().clone()
        >>> embedding(torch.arange(5)).square().sum().backward()
        >>> optimizer.step()
        >>> (embedding.weight == before).all(1)
        tensor([ True,  True,  True, False, False])
        >>> hold.remove()

    References:
        Decoupled weight decay, which moves a weight without a gradient: Loshchilov and Hutter, 2019 (arXiv:1711.05101).
    """

    def __init__(self, optimizer: Optimizer, entries: Mapping[nn.Parameter, Any]) -> None:
        if not isinstance(optimizer, Optimizer) or not private.lets_hooks_see_steps(optimizer):
            raise UsageError(
                f"optimizer must be a torch.optim.Optimizer; got {type(optimizer).__name__}. Make the hold with the "
                "optimizer itself, before a library wraps it."
            )
        if not isinstance(entries, Mapping) or not entries:
            raise UsageError(
                "entries must say of at least one parameter what is held, such as {model.embedding.weight: slice(0, "
                f"100)}}; got {type(entries).__name__} of length {len(entries) if hasattr(entries, '__len__') else 0}."
            )
        refuse_inner(optimizer)
        if any(group.get("differentiable") for group in optimizer.param_groups):
            raise UsageError(
                "an optimizer with differentiable=True cannot be held: no gradient could go through a step whose "
                "result is overwritten. Use differentiable=False."
            )
        if isinstance(optimizer, LBFGS) and optimizer.state:
            raise UsageError(
                "LBFGS has taken steps already, and its history of gradients would go on moving held entries: make the "
                "hold before the first step."
            )
        self._optimizer = optimizer
        self._entries: dict[nn.Parameter, HeldEntries] = {}
        for parameter, given in entries.items():
            self._check_in_optimizer(parameter)
            local(parameter)  # refuses tensors whose entries share scales
            self._entries[parameter] = HeldEntries(parameter, given)
        for parameter, held in self._entries.items():
            self._take(parameter, held)  # refuses state that cannot be held
        # A step that calls that of its base class is two, one in the other; each puts back what was before it.
        self._steps: list[_Step] = []
        self._handles = [
            # First of all hooks: what steps a part of the parameters by itself, as an isolation may, comes behind.
            private.first_before_steps(optimizer, torch.compiler.disable(self._before_step)),  # type: ignore[no-untyped-call]
            optimizer.register_step_post_hook(torch.compiler.disable(self._after_step)),  # type: ignore[no-untyped-call]
        ]
        for parameter, held in self._entries.items():
            if parameter.is_floating_point() or parameter.is_complex():
                learns = parameter.requires_grad
                parameter.requires_grad_()  # else no hook may be registered; it may learn later
                hook = ZeroHeldGradient(held)
                self._handles.append(parameter.register_post_accumulate_grad_hook(hook))  # type: ignore[no-untyped-call]
                parameter.requires_grad_(learns)
        # A parameter outlives its optimizer, and then it is free again.
        self._end = weakref.finalize(self, _remove_all, self._handles)

    def remove(self) -> None:
        """Let go: take the hold's own hooks off the optimizer and the parameters, and no others. Twice is fine."""
        self._end()

    def __reduce__(self) -> NoReturn:
        raise UsageError("a hold can be neither copied nor pickled: make one for the copied optimizer.")

    def __enter__(self) -> Hold:
        return self

    def __exit__(self, *exception: object) -> None:
        self.remove()

    # ------------------------------------------------------------------ around a step

    @torch.no_grad()
    def _before_step(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Arguments | None:
        # Who comes behind may want to see the gradients, or a closure is to make them.
        by_views = closure_of(args, kwargs) is None and private.is_last_before_steps(optimizer, self._handles[0])
        step, parts = _Step({}, []), []
        for parameter, held in self._entries.items():
            self._check_in_optimizer(parameter)
            if parameter.shape != held.shape:
                raise UsageError(
                    f"a held parameter has the shape {tuple(parameter.shape)}, and had {tuple(held.shape)} when the "
                    "hold was made, so that it is not known which entries are meant: remove the hold, and make a new "
                    "one."
                )
            rows = held.closed_rows if by_views else None
            part = None if rows is None else open_part(optimizer, parameter, parameter.grad, rows)
            if part is None:
                step.before[parameter] = self._take(parameter, held)
            else:
                parts.append(part)
        if not parts:
            self._steps.append(step)
            return after_closure(args, kwargs, self._zero_gradients)
        self._zero_gradients()
        step_open(optimizer, parts)
        step.hidden.extend((part.parameter, part.gradient) for part in parts)
        self._steps.append(step)
        for parameter, _ in step.hidden:
            parameter.grad = None
        return None

    def _take(self, parameter: nn.Parameter, held: HeldEntries) -> _Before:
        state = {key: held.take(tensor) for key, tensor in self._state(parameter, held).items()}
        return _Before(held.take(parameter), state)

    @torch.no_grad()
    def _zero_gradients(self) -> None:
        for parameter, held in self._entries.items():
            held.zero_gradient(parameter)

    @torch.no_grad()
    def _after_step(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not self._steps:
            return  # the hold was made while this step was on
        before, hidden = self._steps.pop()
        for parameter, gradient in hidden:
            parameter.grad = gradient
        for parameter, (values, _) in before.items():  # the weights first: of state there may be a complaint
            self._entries[parameter].put(parameter, values)
        for parameter, (values, old) in before.items():
            held, state = self._entries[parameter], self._state(parameter, self._entries[parameter])
            new = state.keys() - old.keys()
            created = self._created(parameter, values) if new else {}
            for key, tensor in state.items():
                if key not in new:
                    held.put(tensor, old[key])
                elif values is not None and key in created and created[key].shape == values.shape:
                    held.put(tensor, created[key])

    def _created(self, parameter: nn.Parameter, values: Tensor | None) -> dict[str, Tensor]:
        """What a step without gradient makes of the state of these values, where it can be found out."""
        if values is None:
            return {}
        try:
            return untouched_state(self._optimizer, parameter, values)
        except UsageError:
            return {}  # Made with a gradient of 0 in any case: at most a weight decay that adds to it is in there.

    def _state(self, parameter: nn.Parameter, held: HeldEntries) -> dict[str, Tensor]:
        if isinstance(self._optimizer, LBFGS):
            return {}
        return state_of_entries(self._optimizer, parameter, held.has_rows_of)

    def _check_in_optimizer(self, parameter: Any) -> None:
        """Refuse what is no parameter of the optimizer's, which nothing would hold."""
        if not isinstance(parameter, Tensor):
            raise UsageError(
                "entries must map parameters themselves, such as model.get_parameter('head.weight'); got a key of "
                f"type {type(parameter).__name__}."
            )
        if not any(parameter is other for group in self._optimizer.param_groups for other in group["params"]):
            raise UsageError(
                f"a parameter of shape {tuple(parameter.shape)} is to be held, and this optimizer does not have it: it "
                "was replaced, or belongs to another model or optimizer. Make the hold with an optimizer of the very "
                "parameter, after whatever replaces it, such as resize_token_embeddings or fully_shard."
            )


def _remove_all(handles: list[RemovableHandle]) -> None:
    for handle in handles:
        handle.remove()
