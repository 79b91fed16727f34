"""A network that is cut into the stages of a pipeline, each routed by the labels of its own microbatch."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import gradroute as gr
from composition.forms import SPEC, WIDTH

LAYERS, MICROBATCHES = 4, 4
SCHEDULES = ("ScheduleGPipe", "Schedule1F1B", "ScheduleInterleaved1F1B", "ScheduleInterleavedZeroBubble")
#: Torch 2.12 cannot yet divide the backward pass of an `autograd.Function` into that of inputs and that of weights.
DIVIDES_FUNCTIONS = torch.__version__ >= "2.14"
RUNS = [
    (form, level, schedule)
    for form, level in (
        ("functional", "activations"),
        ("routed_module", "activations"),
        ("routed_module", "parameters"),
    )
    for schedule in SCHEDULES
    if DIVIDES_FUNCTIONS or level == "activations" or "ZeroBubble" not in schedule
]


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        z = self.linear(x)
        return torch.tanh(z if labels is None else gr.route(z, labels, SPEC))


class Stage(nn.Module):
    """Some consecutive layers of the network, under the names that they have in the whole of it."""

    def __init__(self, numbers: range) -> None:
        super().__init__()
        for number in range(LAYERS):
            torch.manual_seed(number)
            layer = Layer()
            if number in numbers:
                self.add_module(f"layer{number}", layer)

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        for layer in self.children():
            x = layer(x, labels)
        return x


def routed_stage(form: str, level: str, numbers: range = range(LAYERS)) -> nn.Module:
    """The stage in a form that takes its labels as an argument."""
    stage = Stage(numbers)
    if form == "functional":
        return stage
    sites = [gr.Site(SPEC, level=level)]
    if level == "parameters":
        sites.append(gr.Site(SPEC, level=level, on="input"))
    return gr.RoutedModule(stage, {"*.linear": sites})


def argument(form: str) -> str:
    return "labels" if form == "functional" else "route_labels"


def data() -> tuple[Tensor, Tensor]:
    """Inputs and labels of a batch whose microbatches have other labels each."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4 * MICROBATCHES, WIDTH, generator=generator)
    return x, torch.randint(-1, 2, (len(x),), generator=generator)


def loss_of(output: Tensor, _: Tensor) -> Tensor:
    return output.square().sum()


def gradients(stages: list[nn.Module]) -> dict[str, Tensor]:
    """By name, however the stages are wrapped."""
    found = {name: p.grad for stage in stages for name, p in stage.named_parameters()}
    return {name.removeprefix("module."): gradient for name, gradient in found.items()}
