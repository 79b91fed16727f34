"""The network of `forms` under tensor parallelism: ways to divide it, before or after the router is made."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import Replicate, Shard
from torch.distributed.tensor.parallel import ColwiseParallel, ParallelStyle, RowwiseParallel, parallelize_module

import gradroute as gr
from composition.forms import SPEC, Net, Routed
from composition.parameter_forms import sites

Plan = Callable[[], dict[str, ParallelStyle]]

#: How the layers are divided, and so what stands at the site, which sees it before a local tensor is made of it.
PLANS: dict[str, Plan] = {
    "columns and rows": lambda: {"encoder": ColwiseParallel(), "decoder": RowwiseParallel()},
    "DTensors between the layers": lambda: {
        "encoder": ColwiseParallel(use_local_output=False),
        "decoder": RowwiseParallel(),
    },
    "a gathered activation": lambda: {"encoder": ColwiseParallel(output_layouts=Replicate())},
    "gathered DTensors": lambda: {
        "encoder": ColwiseParallel(output_layouts=Replicate(), use_local_output=False),
        "decoder": RowwiseParallel(input_layouts=Replicate()),
    },
    "partial sums": lambda: {"encoder": RowwiseParallel(input_layouts=Replicate())},  # of five inputs: uneven parts
    "partial sums, divided": lambda: {
        "encoder": RowwiseParallel(input_layouts=Replicate(), output_layouts=Shard(-1)),
        "decoder": RowwiseParallel(),
    },
}

#: Those whose first layer gives a plain tensor of the units that a process holds: no tensor for the functional form.
LOCAL_PLANS = ("columns and rows", "partial sums, divided")


def divided(
    form: str, plan: str, mesh: DeviceMesh, *, level: str = "activations", router_first: bool = False
) -> Routed:
    """The network in one form, divided over a mesh before its router is made, or after."""
    there = {"parameters": sites(SPEC), "inputs": {"decoder": gr.Site(SPEC, on="input")}}.get(level)
    if not router_first:

        def make(*args: object) -> nn.Module:
            return parallelize_module(Net(*args), mesh, PLANS[plan]())

        return Routed(form, make, sites=there)
    routed = Routed(form, sites=there)
    prefix = "module." if form == "routed_module" else ""
    parallelize_module(routed.module, mesh, {prefix + name: style for name, style in PLANS[plan]().items()})
    return routed


def whole_gradients(routed: Routed) -> dict[str, object]:
    """The gradients, put together from what the processes hold."""
    return {
        name: gradient.full_tensor() if hasattr(gradient, "full_tensor") else gradient
        for name, gradient in routed.gradients().items()
    }
