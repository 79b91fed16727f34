"""A training step, and the same under a router."""

from collections.abc import Callable, Mapping
from types import TracebackType

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

import gradroute as gr

UNROUTED = "no routing"


class TrainStep:
    """Forward, backward and an AdamW update."""

    def __init__(self, model: nn.Module, loss: Callable[[], Tensor], optimizer: Optimizer | None = None) -> None:
        self.model = model
        self.loss = loss
        # So small a rate that the last step of a long measurement computes with about the same weights as the first.
        self.optimizer = optimizer or torch.optim.AdamW(model.parameters(), lr=1e-7, fused=True)

    def __call__(self) -> None:
        self.optimizer.zero_grad()
        self.loss().backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()

    def gradient_norm(self) -> float:
        """The norm of the gradient that the last step left."""
        gradients = [parameter.grad for parameter in self.model.parameters() if parameter.grad is not None]
        return float(torch.nn.utils.get_total_norm(gradients))


class RoutedStep(TrainStep):
    """A step under a router that stays attached to a model of its own, as compiled code needs it."""

    def __init__(self, step: TrainStep, sites: Mapping[str, gr.RoutingSpec | gr.Site], labels: Tensor) -> None:
        super().__init__(step.model, step.loss, step.optimizer)
        self.sites = sites
        self.labels = labels
        self.router = gr.Router(self.model, sites)

    def __call__(self) -> None:
        with self.router(self.labels):
            super().__call__()


class TemporarilyRoutedStep(RoutedStep):
    """The same, attached for its own samples only, so that the unrouted step can train the same model."""

    def __init__(self, step: TrainStep, sites: Mapping[str, gr.RoutingSpec | gr.Site], labels: Tensor) -> None:
        super().__init__(step, sites, labels)
        self.router.remove()

    def __enter__(self) -> None:
        self.router = gr.Router(self.model, self.sites)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.router.remove()
