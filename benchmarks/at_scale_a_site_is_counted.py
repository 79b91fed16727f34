"""On a model of 7 billion parameters on 8 GPUs, routing all MLP neurons adds at most 1 % to a step, as counted.

Counted and not measured: nothing here ran on a GPU. One site of the size of such a model runs on the meta device, where
every operation is seen with the shapes that it would have, and none is computed; what the operations that start a
kernel read and write is added up, and divided by the bandwidth of the device's memory. The step itself is six
multiplications and additions a parameter and token, at a share of the device's peak that is good and not extraordinary.
Each process holds the labels of its own part of the batch, and masks what it holds itself: no operation of a site
speaks to other processes.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import gradroute as gr
from claims import Outcome, at_most, main, note
from measure import Spread
from settings import Settings

BLOCKS, WIDTH, NEURONS, HEADS_OUT, VOCABULARY = 32, 4096, 11008, 4, 32000  # of Llama 2, 7B
GPUS, TOKENS = 8, 8192  # tokens of a process, a step
#: NVIDIA's data sheet of the H100 SXM: bytes a second, and dense bfloat16 operations a second.
BANDWIDTH, PEAK = 3.35e12, 989e12
SHARE_OF_PEAK, LIMIT = 0.4, 0.01


@dataclass
class Counted(TorchDispatchMode):
    """Adds up what operations read and write.

    Attributes:
        launches: How many operations start a kernel: all that return no view.
        bytes: What these read and write.
        waits: How many have the host wait for a value.
        speaks: How many speak to other processes.
    """

    launches: int = 0
    bytes: int = 0
    waits: int = 0
    speaks: int = 0

    def __post_init__(self) -> None:
        super().__init__()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = str(func)
        self.waits += "_local_scalar_dense" in name or "is_nonzero" in name
        self.speaks += "c10d" in name
        allocates = "empty" in name
        if not func.is_view and not allocates and name != "aten.detach.default":
            self.launches += 1
            read = {key: value for key, value in (kwargs or {}).items() if key != "out"}  # which is what is written
            leaves = [*tree_leaves((args, read)), *tree_leaves(result)]
            self.bytes += sum(leaf.nbytes for leaf in leaves if isinstance(leaf, Tensor))
        return result


def count() -> tuple[Counted, Counted, int]:
    """What a block of labels does once, what a site does forward and backward, and what is kept until backward."""
    spec = gr.RoutingSpec.split({"a": NEURONS // 2, "b": NEURONS // 2})
    labels = torch.zeros(1, TOKENS, dtype=torch.long, device="meta")
    x = torch.zeros(1, TOKENS, NEURONS, dtype=torch.bfloat16, device="meta", requires_grad=True)
    module = torch.nn.Identity()
    router = gr.Router(module, {"": spec})
    grad = torch.zeros_like(x)
    with router(labels):  # tables go to the device once
        torch.autograd.grad(module(x), x, grad)
    block, site = Counted(), Counted()
    with block:
        opened = router(labels)
    with opened, site:
        torch.autograd.grad(module(x), x, grad)
    kept = labels.nbytes + spec.masks.rows.nbytes
    router.remove()
    return block, site, kept


def measure(settings: Settings) -> Outcome:
    block, site, kept = count()
    parameters = 2 * VOCABULARY * WIDTH + BLOCKS * (HEADS_OUT * WIDTH**2 + 3 * WIDTH * NEURONS)
    step = 6 * parameters * TOKENS / (SHARE_OF_PEAK * PEAK)
    added = (block.bytes + BLOCKS * site.bytes) / BANDWIDTH
    size = TOKENS * NEURONS * 2

    def counted(what: str, value: float, unit: str) -> Any:
        return note(what, Spread.exact(value), unit=unit)

    return Outcome(
        [
            at_most(f"{BLOCKS} sites, over a step of one of {GPUS} processes", Spread.exact(added / step), LIMIT),
            counted("parameters", parameters / 1e9, "billion"),
            counted("the step", step * 1e3, "ms"),
            counted("what the sites add to it", added * 1e3, "ms"),
            counted("read and written by a site, in sizes of its activation", site.bytes / size, "x"),
            counted("kernels that a site starts", site.launches, ""),
            counted("kernels that a block of labels starts, once a step", block.launches, ""),
            counted("kept until backward, in sizes of the activations", kept / (BLOCKS * size), "x"),
            at_most("times that the host waits", Spread.exact(block.waits + site.waits), 0, unit=""),
            at_most("messages to other processes", Spread.exact(block.speaks + site.speaks), 0, unit=""),
        ]
    )


if __name__ == "__main__":
    main(__doc__, measure)
