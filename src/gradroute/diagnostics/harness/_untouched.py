"""`Untouched`: all that a run of a model may change, put back: gradients, buffers, modes, random numbers."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ... import _torch_private as private
from ...router._attachment import attachment_of
from ...router._router import Router
from ...router._second_run import RandomState, put_back


class Generators(TorchFunctionMode):
    """Notes the state of every `torch.Generator` that an operation is given, before its first use."""

    def __init__(self) -> None:
        super().__init__()
        self.states: dict[int, tuple[torch.Generator, Tensor]] = {}

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        generator = kwargs.get("generator")
        # None first, which is most: to be an instance of torch's class is a question that Python code answers.
        if generator is not None and isinstance(generator, torch.Generator) and id(generator) not in self.states:
            self.states[id(generator)] = generator, generator.get_state()
        return function(*args, **kwargs)

    def rewind(self) -> None:
        """Put all of them back."""
        for generator, state in self.states.values():
            generator.set_state(state)


class Untouched:
    """``with Untouched(router) as untouched``: leaves model, router and random numbers as they were found.

    What is put back: gradients, buffers (their memory and their values), training modes, attributes that a forward pass
    sets on its modules, the random number generators of torch, numpy and Python and every `torch.Generator` that was
    passed to an operation, and what the router has noted. In between, `rewind` puts buffers and random numbers back, so
    that two runs see the same.
    """

    def __init__(self, router: Router) -> None:
        self._router = router
        self._attachment = attachment_of(router)
        self._modules = list(router.model.modules())

    def __enter__(self) -> Untouched:
        model = self._router.model
        self._gradients = [(p, p.grad, None if p.grad is None else p.grad.clone()) for p in model.parameters()]
        self._buffers = [
            (module, name, buffer, None if buffer is None else buffer.detach().clone())
            for module in self._modules
            for name, buffer in private.buffers_of(module).items()
        ]
        self._attributes = [(module, dict(module.__dict__)) for module in self._modules]
        self._random = RandomState()
        self._generators = Generators()
        # Compiled code runs no hooks that came after it. Without Dynamo nothing is compiled, and it takes seconds
        # to import.
        compiled = private.dynamo_is_loaded()
        self._stance: Any = torch.compiler.set_stance("force_eager") if compiled else contextlib.nullcontext()
        self._stack = contextlib.ExitStack()
        # An unrouted pass is meant here, so there is nothing to warn of and nothing for an optimizer to know.
        self._stack.enter_context(self._attachment.quiet())
        self._stack.enter_context(self._stance)
        self._stack.enter_context(self._generators)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, trace)
        self.rewind()
        with torch.no_grad():
            for parameter, gradient, values in self._gradients:
                parameter.grad = gradient
                if gradient is not None and values is not None and not _same(gradient, values):
                    gradient.copy_(values)
        for module, before_all in self._attributes:
            put_back(module, before_all)

    def rewind(self) -> None:
        """Put buffers and random numbers back to where they were at the start."""
        with torch.no_grad():
            for module, name, buffer, values in self._buffers:
                private.buffers_of(module)[name] = buffer
                if buffer is not None and values is not None and not _same(buffer, values):
                    buffer.copy_(values)
        self._random.rewind()
        self._generators.rewind()


def _same(a: Tensor, b: Tensor) -> bool:
    """Whether nothing was written. NaNs count as written, which costs a copy and no more."""
    return a.layout == torch.strided and a.device.type != "meta" and bool(torch.equal(a, b))


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that require gradients, each once, by its first qualified name."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def norm(tensors: Iterable[Tensor | None]) -> float:
    """The norm of all tensors as one vector, in double precision; 0 for none."""
    squares = [t.detach().double().square().sum().cpu() for t in tensors if t is not None]
    return float(torch.stack(squares).sum().sqrt()) if squares else 0.0
