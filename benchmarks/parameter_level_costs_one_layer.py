"""Level "parameters" costs at most 1.05 times the layer at [8, 1024, 768] to 3072, and 0.15 ms where it is small.

A linear layer, with a label for each token, and a site on its output, so that the rows that write a unit learn by
route; on its input, so that the columns that read a unit do (at most 1.02 times); or on both (both costs). The gradient
of the input is computed too. Of small layers it is the time that each site adds, in eager mode. And whole blocks of
GPT-2-small with a site on every neuron and head, at both ends, take at most 1.05 times as long as unrouted ones.
"""

from contextlib import nullcontext
from functools import partial

import torch
from torch import Tensor, nn

import gradroute as gr
from cases import DTYPES, name_of
from claims import Check, Outcome, at_most, main
from gpt2 import HEADS, WIDTH, build_blocks
from gradroute.blocks import block_sites
from measure import Candidate, compare
from settings import Settings
from steps import TemporarilyRoutedStep

BATCH, TOKENS, INPUTS, OUTPUTS = 8, 1024, 768, 3072
UNROUTED = "unrouted"
LIMITS = {"writers": 1.05, "readers": 1.02, "both": 1.07}
SMALL_BATCH, SMALL_WIDTH, LAYERS, MILLISECONDS_A_SITE = 8, 16, 50, 0.15
BLOCKS_LIMIT = 1.05


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
            checks.append(at_most(what, times.ratio(name, to=UNROUTED), LIMITS[name]))
    return Outcome([*checks, *_small(settings), _blocks(settings)])


def _small(settings: Settings) -> list[Check]:
    """What a site adds where Python is all that counts."""

    def step(on: str | None) -> Candidate:
        layers = nn.Sequential(*[nn.Linear(SMALL_WIDTH, SMALL_WIDTH) for _ in range(LAYERS)]).to(settings.device)
        x = torch.randn(SMALL_BATCH, SMALL_WIDTH, device=settings.device)
        labels = torch.randint(2, (SMALL_BATCH,), device=settings.device)
        spec = gr.RoutingSpec.split({"a": SMALL_WIDTH // 2, "b": SMALL_WIDTH // 2})
        router = gr.Router(layers, {"*": gr.Site(spec, on=on, level="parameters")}) if on else None

        def run() -> None:
            with router(labels) if router else nullcontext():
                layers(x).sum().backward()

        return run

    times = compare({str(on): step(on) for on in (None, "output", "input")}, settings, rounds=100)
    return [
        at_most(
            f"added by each small site on the {on}",
            times.difference(on, minus="None") * (1e3 / LAYERS),
            MILLISECONDS_A_SITE,
            unit="ms",
        )
        for on in ("output", "input")
    ]


def _blocks(settings: Settings) -> Check:
    blocks = build_blocks(settings.device)
    unrouted = blocks.step(compiled=False)
    neurons, heads = (gr.RoutingSpec.split({"a": n // 2, "b": n // 2}) for n in (4 * WIDTH, HEADS))
    routed = TemporarilyRoutedStep(unrouted, block_sites(blocks.model, mlp=neurons, heads=heads), blocks.labels)
    times = compare({UNROUTED: unrouted, "routed": routed}, settings, rounds=30, sample_seconds=0, settle=False)
    what = f"a training step of GPT-2 blocks, neurons and heads at both ends: routed / {UNROUTED}"
    return at_most(what, times.ratio("routed", to=UNROUTED), BLOCKS_LIMIT)


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
