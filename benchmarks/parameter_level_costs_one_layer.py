"""Level "parameters" costs at most 1.15 times the unrouted layer, forward and backward, at [8, 1024, 768] to 3072.

A linear layer, with a label for each token, and a site on its output, so that the rows that write a unit learn by
route; on its input, so that the columns that read a unit do; or on both. The gradient of the input is computed too.
"""

from functools import partial

import torch
from torch import Tensor, nn

import gradroute as gr
from cases import DTYPES, name_of
from claims import Check, Outcome, at_most, main
from measure import compare
from settings import Settings

BATCH, TOKENS, INPUTS, OUTPUTS = 8, 1024, 768, 3072
UNROUTED = "unrouted"
LIMIT = 1.15


def sites() -> dict[str, list[gr.Site]]:
    writers, readers = (
        gr.Site(gr.RoutingSpec.split({0: width // 2, 1: width // 4}, shared=width // 4), on=on, level="parameters")
        for width, on in ((OUTPUTS, "output"), (INPUTS, "input"))
    )
    return {"writers": [writers], "readers": [readers], "both": [writers, readers]}


class Layer:
    """One layer, unrouted or with sites on it: a call is forward and backward."""

    def __init__(self, own: list[gr.Site], dtype: torch.dtype, device: torch.device) -> None:
        torch.manual_seed(0)
        self.linear = nn.Linear(INPUTS, OUTPUTS, dtype=dtype, device=device)
        self.router = gr.Router(self.linear, {"": own}) if own else None
        self.x = torch.randn(BATCH, TOKENS, INPUTS, dtype=dtype, device=device, requires_grad=True)
        self.grad = torch.randn(BATCH, TOKENS, OUTPUTS, dtype=dtype, device=device)
        self.labels = torch.randint(2, (BATCH, TOKENS), device=device)

    def __call__(self) -> tuple[Tensor, ...]:
        if self.router is None:
            return self._run()
        with self.router(self.labels):
            return self._run()

    def _run(self) -> tuple[Tensor, ...]:
        return torch.autograd.grad(self.linear(self.x), [self.x, *self.linear.parameters()], self.grad)


def measure(settings: Settings) -> Outcome:
    checks: list[Check] = []
    for dtype in DTYPES:
        make = partial(Layer, dtype=dtype, device=settings.device)
        layers = {UNROUTED: make([]), **{name: make(own) for name, own in sites().items()}}
        check_that_they_route(layers)
        times = compare(layers, settings, rounds=15, settle=False)  # a call takes a second
        for name in sites():
            what = f"{name}, {name_of(dtype)}: routed / {UNROUTED}"
            checks.append(at_most(what, times.ratio(name, to=UNROUTED), LIMIT))
    return Outcome(checks)


def check_that_they_route(layers: dict[str, Layer]) -> None:
    """A layer that lost its routing would cost nothing and pass."""
    whole = layers[UNROUTED]()
    for name, layer in layers.items():
        of_input, of_weight, _ = layer()
        torch.testing.assert_close(of_input, whole[0])
        if (of_weight - whole[1]).norm() < 0.1 * whole[1].norm() and name != UNROUTED:
            raise RuntimeError(f"{name!r} leaves the gradient of the unrouted layer: it routes nothing.")


if __name__ == "__main__":
    main(__doc__, measure)
