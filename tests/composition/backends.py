"""One trace by Dynamo, compiled by several backends: what each of them makes of it, without tracing anew for each."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch._dynamo.backends.registry import lookup_backend


class EachBackend:
    """A backend of `torch.compile` that stands for several.

    Attributes:
        traces: How often Dynamo has traced, as of `torch._dynamo.testing.CompileCounter`.
    """

    def __init__(self, *names: str) -> None:
        self.names = names
        self.running = names[0]
        self.traces = 0

    def __call__(self, graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., object]:
        self.traces += 1
        # Copies, since some of them rewrite the graph that they are given.
        compiled = {name: lookup_backend(name)(copy.deepcopy(graph), inputs) for name in self.names}

        def run(*args: Tensor) -> object:
            return compiled[self.running](*args)

        return run

    def each(self) -> Iterator[str]:
        """The backends, each of which runs all that was compiled until the next one's turn."""
        for name in self.names:
            self.running = name
            yield name
