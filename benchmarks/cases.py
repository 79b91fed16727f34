"""The tensors that are routed: one for each kind of model, with its labels."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

import gradroute as gr
from settings import Settings

Routing = Callable[[Tensor, Tensor], Tensor]
"""Takes an activation and labels, and returns the activation, routed."""


@dataclass(frozen=True)
class Shape:
    """An activation, the dimension of its units, how many dimensions are labeled, and among how many labels."""

    x: tuple[int, ...]
    dim: int = -1
    labeled: int = 1
    n_labels: int = 4


SHAPES = {
    "[128, 10]": Shape((128, 10), n_labels=10),  # the latent of the MNIST VAE: one unit per label
    "[512, 512]": Shape((512, 512)),
    "[8, 1024, 768], tokens": Shape((8, 1024, 768), labeled=2),
    "[32, 64, 56, 56], dim 1": Shape((32, 64, 56, 56), dim=1),
}
VAE, TOKENS = "[128, 10]", "[8, 1024, 768], tokens"
DTYPES = (torch.float32, torch.bfloat16)


@dataclass(frozen=True)
class Case:
    """What one comparison works on."""

    name: str
    spec: gr.RoutingSpec
    x: Tensor
    labels: Tensor
    grad: Tensor
    dim: int

    @property
    def dtype(self) -> str:
        return name_of(self.x.dtype)

    def routed(self, x: Tensor, labels: Tensor) -> Tensor:
        return gr.route(x, labels, self.spec, dim=self.dim)

    def routing(self, mode: str) -> Routing:
        """The same in a mode, "eager" or "compiled"."""
        return torch.compile(self.routed, dynamic=False) if mode == "compiled" else self.routed

    def forward_and_backward(self, routing: Routing) -> Tensor:
        return torch.autograd.grad(routing(self.x, self.labels), self.x, self.grad)[0]


def no_routing(x: Tensor, labels: Tensor) -> Tensor:
    return x


def name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def grid(settings: Settings) -> Iterator[tuple[Case, str]]:
    """Every shape and dtype, in every mode that a run of these settings has time for."""
    for name in SHAPES:
        for dtype in DTYPES:
            case = build(name, dtype, settings.device)
            for mode in settings.modes:
                yield case, mode


def build(name: str, dtype: torch.dtype, device: torch.device, spec: gr.RoutingSpec | None = None) -> Case:
    """A case of `SHAPES`; with a spec of its own where one is given, whose labels are numbered from 0."""
    return build_shape(name, SHAPES[name], dtype, device, spec)


def build_shape(
    name: str, shape: Shape, dtype: torch.dtype, device: torch.device, spec: gr.RoutingSpec | None = None
) -> Case:
    generator = torch.Generator().manual_seed(0)
    width, n_labels = shape.x[shape.dim], shape.n_labels if spec is None else len(spec.labels)
    if spec is None:
        block = width // n_labels
        spec = gr.RoutingSpec({label: slice(label * block, (label + 1) * block) for label in range(n_labels)}, width)
    x, grad = (torch.randn(shape.x, generator=generator).to(device, dtype) for _ in range(2))
    labels = torch.randint(0, n_labels, shape.x[: shape.labeled], generator=generator).to(device)
    return Case(name, spec, x.requires_grad_(), labels, grad, shape.dim)
