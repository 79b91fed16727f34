"""docs/moving.md, "From two LoRAs": row by row, and what docs/how_to/lora.md says an Isolation holds."""

from __future__ import annotations

import contextlib

import pytest
import torch
from torch import Tensor, nn

import gradroute as gr
from gradroute.optim import Isolation

from .comparing import assert_same

ADAPTERS = ("good", "bad")
WIDTH, RANK = 6, 2
LABELS = gr.RoutingSpec(dict.fromkeys(ADAPTERS, 0), 1)  # for `encode`: the labels of all sites


class DualLora(nn.Module):
    """A frozen layer with two adapters, each with a scale."""

    def __init__(self) -> None:
        super().__init__()
        self.base = nn.Linear(WIDTH, WIDTH).requires_grad_(False)
        self.lora_A = nn.ModuleDict({name: nn.Linear(WIDTH, RANK, bias=False) for name in ADAPTERS})
        self.lora_B = nn.ModuleDict({name: nn.Linear(RANK, WIDTH, bias=False) for name in ADAPTERS})
        self.scales = dict.fromkeys(ADAPTERS, 1.0)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + sum(
            scale * self.lora_B[name](self.lora_A[name](x)) for name, scale in self.scales.items()
        )


def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(DualLora(), nn.Tanh(), DualLora()).double()


def batches(n: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(1, WIDTH, generator=generator, dtype=torch.float64) for _ in range(n)]


def adapter(net: nn.Module, name: str) -> list[nn.Parameter]:
    return [parameter for full, parameter in net.named_parameters() if f".{name}." in full]


def state(net: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in net.named_parameters() if parameter.requires_grad}


def only(name: str, width: int) -> gr.RoutingSpec:
    """All units of one adapter's layer, for its own label alone, as in docs/how_to/lora.md."""
    return gr.RoutingSpec({label: slice(None) if label == name else [] for label in ADAPTERS}, width)


def sites(*layers: str, level: str = "parameters") -> dict[str, gr.Site]:
    widths = {"lora_A": RANK, "lora_B": WIDTH}
    return {
        f"*.{layer}.{name}": gr.Site(only(name, widths[layer]), level=level)
        for layer in layers or widths
        for name in ADAPTERS
    }


def with_two_optimizers(
    labeled: list[bool], kind: type[torch.optim.Optimizer] = torch.optim.SGD, **options: float
) -> dict[str, Tensor]:
    """An example that is labeled bad steps the bad adapter alone, and what the good one would learn is thrown away."""
    net = model()
    optimizers = {name: kind(adapter(net, name), lr=0.1, **options) for name in ADAPTERS}
    for x, is_bad in zip(batches(len(labeled)), labeled, strict=True):
        net.zero_grad()
        net(x).square().sum().backward()
        for name in ("bad",) if is_bad else ADAPTERS:
            optimizers[name].step()
    return state(net)


def with_a_router(
    labeled: list[bool],
    where: dict[str, gr.Site] | None = None,
    kind: type[torch.optim.Optimizer] = torch.optim.SGD,
    **options: float,
) -> dict[str, Tensor]:
    net = model()
    optimizer = kind([p for p in net.parameters() if p.requires_grad], lr=0.1, **options)
    router = gr.Router(net, where or sites())
    isolation = Isolation(router, optimizer) if options else contextlib.nullcontext()
    with isolation:
        for x, is_bad in zip(batches(len(labeled)), labeled, strict=True):
            net.zero_grad()
            with router(LABELS.encode(["bad"]) if is_bad else torch.tensor([gr.UNLABELED])):
                net(x).square().sum().backward()
            optimizer.step()
    return state(net)


LABELED = [False, True, True, False, True]


def test_labeled_bad_is_a_label_and_all_else_is_unlabeled() -> None:
    assert_same(with_two_optimizers(LABELED), with_a_router(LABELED))


def test_at_level_activations_an_adapter_learns_nothing_through_a_closed_one_of_a_later_layer() -> None:
    theirs, ours = with_two_optimizers([True]), with_a_router([True], sites(level="activations"))
    assert_same(theirs, ours, but=("0.lora_A.bad.weight", "0.lora_B.bad.weight"))


@pytest.mark.parametrize(
    ("kind", "options"),
    [(torch.optim.SGD, {"momentum": 0.9, "weight_decay": 0.1}), (torch.optim.AdamW, {"weight_decay": 0.1})],
)
def test_an_optimizer_for_each_adapter_is_an_isolation_of_both_its_layers(
    kind: type[torch.optim.Optimizer], options: dict[str, float]
) -> None:
    """Adam's count of steps, too: a parameter that is held as a whole takes no step."""
    assert_same(with_two_optimizers(LABELED, kind, **options), with_a_router(LABELED, kind=kind, **options))


def test_a_site_on_lora_b_alone_holds_no_lora_a() -> None:
    moving = {"momentum": 0.9, "weight_decay": 0.1}
    first, then = ([False, *[True] * n] for n in (0, 1))
    held, moved = (with_a_router(run, sites("lora_B"), **moving) for run in (first, then))
    good = {name for name in held if ".good." in name and not torch.equal(held[name], moved[name])}
    assert good == {"0.lora_A.good.weight", "2.lora_A.good.weight"}
    held, moved = (with_a_router(run, **moving) for run in (first, then))
    assert not [name for name in held if ".good." in name and not torch.equal(held[name], moved[name])]


def test_examples_of_both_kinds_share_a_batch() -> None:
    net, (one, other) = model(), batches(2)
    router = gr.Router(net, sites())
    alone = {}
    for x, label in ((one, LABELS.encode(["bad"])), (other, torch.tensor([gr.UNLABELED]))):
        net.zero_grad()
        with router(label):
            net(x).square().sum().backward()
        for name, parameter in net.named_parameters():
            if parameter.requires_grad:
                alone[name] = alone.get(name, 0) + parameter.grad
    net.zero_grad()
    with router(LABELS.encode(["bad", gr.UNLABELED])):
        net(torch.cat([one, other])).square().sum().backward()
    assert_same(alone, {name: p.grad for name, p in net.named_parameters() if p.requires_grad})


@torch.no_grad()
def test_a_scale_of_zero_is_ablated() -> None:
    net, (x,) = model(), batches(1)
    router = gr.Router(net, sites())
    with router.ablated("bad"):
        ours = net(x)
    for layer in (net[0], net[2]):
        layer.scales["bad"] = 0.0
    torch.testing.assert_close(ours, net(x), rtol=1e-12, atol=1e-12)
