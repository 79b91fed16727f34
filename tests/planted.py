"""Models with a leak planted in each, and what an audit must call it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import gradroute as gr
from architectures import _encoder, _gpt2, _resnet

N, WIDTH = 8, 4
SPEC = gr.RoutingSpec({0: [0, 1], 1: [2, 3]}, WIDTH)
READS = gr.Site(SPEC, on="input", level="parameters")


def labels(n: int = N) -> Tensor:
    return torch.arange(n) % 2


@dataclass
class Planted:
    """A model with sites, its loss, and the bypasses in it as (target, kind); `also` may be there or not."""

    model: nn.Module
    sites: dict[str, Any]
    step: Callable[[Any], Tensor]
    batch: Any
    bypasses: set[tuple[str, str]]
    labels: Tensor = field(default_factory=labels)


def _square(model: nn.Module) -> Callable[[Any], Tensor]:
    return lambda x: model(x).square().mean()


def _inputs() -> Tensor:
    return torch.randn(N, 5)


def readers_of_a_bottleneck() -> Planted:
    model = nn.Sequential(nn.Linear(5, WIDTH), nn.Linear(WIDTH, 6), nn.ReLU(), nn.Linear(6, 2))
    return Planted(model, {"0": SPEC}, _square(model), _inputs(), {("1.weight", "reader"), ("1.bias", "shared bias")})


class OriginalVAE(nn.Module):
    """The original: code, then a linear map to the mean and one to the spread; the KL takes both as they are."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, WIDTH))
        self.mean, self.spread = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.latent = nn.Identity()
        self.decoder = nn.Sequential(nn.Linear(WIDTH, 7, bias=False), nn.ReLU(), nn.Linear(7, 5))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        code = self.encoder(x)
        mean, spread = self.mean(code), self.spread(code)
        return self.decoder(self.latent(mean + spread * torch.randn_like(mean))), mean, spread

    def loss(self, x: Tensor) -> Tensor:
        logits, mean, spread = self(x)
        squared_error = (torch.sigmoid(logits) - x).square().sum() / len(x)
        return 0.3 * squared_error + (mean.square() + spread.exp() - spread).mean()


KL_BYPASSES = {(f"{head}.{name}", "side loss") for head in ("mean", "spread") for name in ("weight", "bias")}


def kl_of_the_original_vae() -> Planted:
    model = OriginalVAE()
    return Planted(model, {"latent": SPEC, "decoder.0": READS}, model.loss, _inputs(), KL_BYPASSES)


def kl_for_each_example() -> Planted:
    model = OriginalVAE()

    def step(x: Tensor) -> Tensor:
        output, mean, spread = model(x)
        return ((output - x).square().mean(1) + 0.1 * (mean.square() + spread.square()).mean(1)).mean()

    return Planted(model, {"latent": SPEC, "decoder.0": READS}, step, _inputs(), KL_BYPASSES)


class ConvNet(nn.Module):
    def __init__(self, *, skip: bool) -> None:
        super().__init__()
        self.writer = nn.Conv2d(3, WIDTH, 3, padding=1)
        self.norm = nn.BatchNorm2d(WIDTH)
        self.site = nn.Identity()
        self.reader = nn.Conv2d(WIDTH, 4, 3, padding=1, bias=False)
        self.skip = skip

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.norm(self.writer(x)))
        y = self.reader(self.site(h))
        return torch.tanh(y + h) if self.skip else torch.tanh(y)


def skip_in_a_convolutional_network() -> Planted:
    model = ConvNet(skip=True)
    # The bias before a BatchNorm in training mode gets no gradient but for rounding.
    model.writer.bias.requires_grad_(False)
    names = ("writer.weight", "norm.weight", "norm.bias", "site")
    return Planted(
        model,
        {"site": gr.Site(SPEC, dim=1), "reader": gr.Site(SPEC, on="input", level="parameters", dim=1)},
        _square(model),
        torch.randn(N, 3, 4, 4),
        {(name, "skip connection") for name in names},
    )


def hook_upstream_of_the_site() -> Planted:
    model = nn.Sequential(nn.Linear(5, WIDTH), nn.Identity(), nn.Linear(WIDTH, 3, bias=False))
    seen: list[Tensor] = []

    def penalize(module: nn.Module, args: Any, output: Tensor) -> None:
        seen.append(output.abs().mean())

    model[0].register_forward_hook(penalize)

    def step(x: Tensor) -> Tensor:
        seen.clear()
        return model(x).square().mean() + seen[0]

    bypasses = {(target, "auxiliary hook") for target in ("0.weight", "0.bias", "1")}
    return Planted(model, {"1": SPEC, "2": READS}, step, _inputs(), bypasses)


def loss_on_a_cached_activation() -> Planted:
    class Caching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(5, WIDTH)
            self.last: Tensor | None = None

        def forward(self, x: Tensor) -> Tensor:
            self.last = self.linear(x)
            return self.last

    model = nn.Sequential(Caching(), nn.GELU(), nn.Linear(WIDTH, 3, bias=False))

    def step(x: Tensor) -> Tensor:
        return model(x).square().mean() + model[0].last.abs().mean()

    bypasses = {(target, "side loss") for target in ("0.linear.weight", "0.linear.bias", "0")}
    return Planted(model, {"0": SPEC, "2": READS}, step, _inputs(), bypasses)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Linear(5, WIDTH, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.encoder(x) @ self.encoder.weight


def tied_autoencoder() -> Planted:
    model = Tied()
    bypasses = {("encoder.weight", "tied weight"), ("encoder.weight", "reader")}
    return Planted(model, {"encoder": SPEC}, _square(model), _inputs(), bypasses)


def weight_penalty() -> Planted:
    model = nn.Sequential(nn.Linear(5, WIDTH, bias=False), nn.Tanh(), nn.Linear(WIDTH, 3, bias=False))

    def step(x: Tensor) -> Tensor:
        return model(x).square().mean() + sum(p.square().sum() for p in model.parameters())

    sites = {"0": gr.Site(SPEC, level="parameters"), "2": READS}
    return Planted(model, sites, step, _inputs(), {("0.weight", "tied weight"), ("2.weight", "tied weight")})


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.Module]) -> None:
        super().__init__()
        self.writer = nn.Linear(5, WIDTH)
        self.rnn = kind(WIDTH, 6, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.rnn(self.writer(x))[0]


def recurrent(kind: type[nn.Module]) -> Planted:
    model = Recurrent(kind)
    bypasses = {("rnn.weight_ih_l0", "reader"), ("rnn.bias_ih_l0", "shared bias")}
    return Planted(model, {"writer": SPEC}, _square(model), torch.randn(N, 3, 5), bypasses)


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.writer = nn.Linear(5, WIDTH)
        self.attention = nn.MultiheadAttention(WIDTH, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        h = self.writer(x)
        return self.attention(h, h, h)[0]


def attention() -> Planted:
    model = Attention()
    bypasses = {("attention.in_proj_weight", "reader"), ("attention.in_proj_bias", "shared bias")}
    return Planted(model, {"writer": SPEC}, _square(model), torch.randn(N, 3, 5), bypasses)


def gpt2() -> Planted:
    model = _gpt2()
    spec = gr.RoutingSpec({0: slice(0, 32), 1: slice(32, 64)}, 64)
    inner = {f"transformer.h.{block}.mlp.c_proj" for block in (0, 1)}
    bypasses = {(f"{name}.weight", "reader") for name in inner} | {(f"{name}.bias", "shared bias") for name in inner}
    ids = torch.randint(0, 11, (N, 3))
    return Planted(
        model,
        {"transformer.h.*.mlp.c_fc": spec},
        lambda ids: model(ids, labels=ids).loss,
        {"ids": ids}["ids"],
        bypasses,
    )


def resnet() -> Planted:
    model = _resnet()
    spec = gr.RoutingSpec({0: slice(0, 32), 1: slice(32, 64)}, 64)
    bypasses = {
        ("layer1.0.bn1.weight", "reader"),
        ("layer1.0.bn1.bias", "shared bias"),
        ("layer1.0.conv2.weight", "reader"),
    }
    sites = {"layer1.0.conv1": gr.Site(spec, dim=1)}
    return Planted(model, sites, _square(model), torch.randn(4, 3, 8, 8), bypasses, labels(4))


def transformer_encoder() -> Planted:
    model = _encoder()
    spec = gr.RoutingSpec({0: slice(0, 16), 1: slice(16, 32)}, 32)
    linears = [f"layers.{layer}.linear2" for layer in (0, 1)]
    bypasses = {(f"{name}.weight", "reader") for name in linears} | {
        (f"{name}.bias", "shared bias") for name in linears
    }
    return Planted(model, {"layers.*.linear1": spec}, _square(model), torch.randn(N, 3, 16), bypasses)


class UNet(nn.Module):
    """A skip by concatenation around the bottleneck, of the tensor that the bottleneck's units are made of."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Linear(5, WIDTH)
        self.bottleneck = nn.Tanh()
        self.up = nn.Linear(2 * WIDTH, 5, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        h = self.down(x)
        return self.up(torch.cat([self.bottleneck(h), h], 1))


def unet() -> Planted:
    model = UNet()
    bypasses = {("down.weight", "skip connection"), ("down.bias", "skip connection"), ("up.weight", "reader")}
    return Planted(model, {"bottleneck": SPEC}, _square(model), _inputs(), bypasses)


def tied_embedding() -> Planted:
    model = nn.ModuleDict({"embed": nn.Embedding(7, WIDTH), "mix": nn.Linear(WIDTH, WIDTH, bias=False)})

    def step(ids: Tensor) -> Tensor:
        hidden = torch.tanh(model["mix"](model["embed"](ids)))
        return F.cross_entropy(hidden @ model["embed"].weight.t(), ids)

    ids = torch.randint(0, 7, (N,))
    sites = {"embed": SPEC, "mix": READS}
    return Planted(model, sites, step, ids, {("embed.weight", "tied weight")})


def silent_site() -> Planted:
    model = nn.Sequential(nn.Linear(5, WIDTH), nn.Linear(WIDTH, 3))

    def step(x: Tensor) -> Tensor:
        return model[1](model[0].forward(x)).square().mean()

    return Planted(model, {"0": SPEC}, step, _inputs(), {("0", "silent site")})


class Experts(nn.Module):
    """Two encoders and two decoders side by side; the second decoder's layers read one route only."""

    def __init__(self) -> None:
        super().__init__()
        self.writer = nn.Linear(5, WIDTH)
        self.decoders = nn.ModuleList(
            nn.Sequential(nn.Linear(2, 6, bias=False), nn.Tanh(), nn.Linear(6, 3, bias=False)) for _ in range(2)
        )

    def forward(self, x: Tensor) -> Tensor:
        halves = self.writer(x).chunk(2, -1)
        return sum(decoder(half) for decoder, half in zip(self.decoders, halves, strict=True))


def experts() -> Planted:
    model = Experts()
    names = {f"decoders.{expert}.{layer}.weight" for expert in (0, 1) for layer in (0, 2)}
    return Planted(model, {"writer": SPEC}, _square(model), _inputs(), {(name, "reader") for name in names})


def functional_reader() -> Planted:
    class Functional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.writer = nn.Linear(5, WIDTH)
            self.w = nn.Parameter(torch.randn(3, WIDTH))

        def forward(self, x: Tensor) -> Tensor:
            return F.linear(torch.sigmoid(self.writer(x)), self.w)

    model = Functional()
    return Planted(model, {"writer": SPEC}, _square(model), _inputs(), {("w", "reader")})


def gradient_hook_on_a_writer() -> Planted:
    model = nn.Sequential(nn.Linear(5, WIDTH), nn.Tanh(), nn.Linear(WIDTH, 3, bias=False))
    model[0].weight.register_hook(lambda gradient: gradient + 0.01)
    return Planted(model, {"0": SPEC, "2": READS}, _square(model), _inputs(), {("0.weight", "gradient hook")})


def centralized_gradient() -> Planted:
    """A hook that makes each entry's gradient depend on all others."""
    model = nn.Sequential(nn.Linear(5, WIDTH), nn.Tanh(), nn.Linear(WIDTH, 3, bias=False))
    model[0].weight.register_hook(lambda gradient: gradient - gradient.mean())
    return Planted(model, {"0": SPEC, "2": READS}, _square(model), _inputs(), {("0.weight", "gradient hook")})


class AddsToGradients(torch.autograd.Function):
    """Forward: identity. Backward: adds a constant, where no hook can be left out."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient + 0.01


def function_that_adds_to_gradients() -> Planted:
    class Adding(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return AddsToGradients.apply(x)

    model = nn.Sequential(nn.Linear(5, WIDTH), Adding(), nn.Identity(), nn.Tanh(), nn.Linear(WIDTH, 3, bias=False))
    bypasses = {(name, "unknown path") for name in ("0.weight", "0.bias")}
    return Planted(model, {"2": SPEC, "4": READS}, _square(model), _inputs(), bypasses)


def gradient_hook_on_a_reader() -> Planted:
    model = nn.Sequential(nn.Linear(5, WIDTH), nn.Tanh(), nn.Linear(WIDTH, 3, bias=False))
    model[2].weight.register_hook(lambda gradient: gradient + 0.01)
    return Planted(model, {"0": SPEC, "2": READS}, _square(model), _inputs(), {("2.weight", "gradient hook")})


def backward_pre_hook_before_the_site() -> Planted:
    model = nn.Sequential(nn.Linear(5, WIDTH), nn.Identity(), nn.Linear(WIDTH, 3, bias=False))
    model[0].register_full_backward_pre_hook(lambda module, gradients: (gradients[0] + 0.01,))
    bypasses = {(name, "gradient hook") for name in ("0.weight", "0.bias")}
    return Planted(model, {"1": SPEC, "2": READS}, _square(model), _inputs(), bypasses)


def gradient_hook_on_an_activation() -> Planted:
    class Hooked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.writer = nn.Linear(5, WIDTH)

        def forward(self, x: Tensor) -> Tensor:
            h = self.writer(x)
            if h.requires_grad:
                h.register_hook(lambda gradient: gradient + 0.01)
            return torch.tanh(h)

    model = nn.Sequential(Hooked(), nn.Linear(WIDTH, 3, bias=False))
    bypasses = {(name, "gradient hook") for name in ("0.writer.weight", "0.writer.bias")}
    return Planted(model, {"0": SPEC, "1": READS}, _square(model), _inputs(), bypasses)


class PerUnit(nn.Module):
    """A parameter with an entry for each unit, or several rows of them, that meets what a layer writes."""

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor], *shape: int) -> None:
        super().__init__()
        self.writer = nn.Linear(5, WIDTH)
        self.own = nn.Parameter(torch.randn(*shape, WIDTH))
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.writer(x), self.own)


def per_unit(function: Callable[[Tensor, Tensor], Tensor], *shape: int) -> Planted:
    model = PerUnit(function, *shape)
    return Planted(model, {"writer": SPEC}, _square(model), _inputs(), {("own", "per-unit parameter")})


def _chosen_code(x: Tensor, codebook: Tensor) -> Tensor:
    return x - F.embedding(torch.arange(len(x)) % len(codebook), codebook)


# Units that lie in both directions of a network with two.
ALTERNATING = gr.RoutingSpec({0: [0, 2], 1: [1, 3]}, WIDTH)


class States(nn.Module):
    """Hands on what a recurrent network returns first: its states, one for each step."""

    def __init__(self, kind: type[nn.Module], **options: Any) -> None:
        super().__init__()
        width = WIDTH // (2 if options.get("bidirectional") else 1)
        self.rnn = kind(5, width, batch_first=True, **options)

    def forward(self, x: Tensor) -> Tensor:
        return self.rnn(x)[0]


def states(kind: type[nn.Module], *, inside: bool, **options: Any) -> Planted:
    model = States(kind, **options)
    last = options.get("num_layers", 1) - 1
    bypasses = {(name, "recurrence") for name, _ in model.named_parameters() if f"_l{last}" in name}
    sites = {"rnn": gr.Site(ALTERNATING, index=0)} if inside else {"": ALTERNATING}
    return Planted(model, sites, _square(model), torch.randn(N, 3, 5), bypasses)


def states_at_level_parameters() -> Planted:
    planted = states(nn.GRU, inside=True)
    planted.sites = {"rnn": gr.Site(ALTERNATING, index=0, level="parameters")}
    return planted


class CellLoop(nn.Module):
    """A loop over a cell, which returns all of its states or the last."""

    def __init__(self, *, last: bool) -> None:
        super().__init__()
        self.cell = nn.GRUCell(5, WIDTH)
        self.last = last

    def forward(self, x: Tensor) -> Tensor:
        state, found = x.new_zeros(len(x), WIDTH), []
        for step in x.unbind(1):
            state = self.cell(step, state)
            found.append(state)
        return state if self.last else torch.stack(found, 1)


def cell_loop(*, last: bool) -> Planted:
    model = CellLoop(last=last)
    bypasses = {(f"cell.{name}", "recurrence") for name, _ in model.cell.named_parameters()}
    return Planted(model, {"": SPEC}, _square(model), torch.randn(N, 3, 5), bypasses)


PLANTED: dict[str, Callable[[], Planted]] = {
    "readers of a bottleneck": readers_of_a_bottleneck,
    "KL of the original VAE": kl_of_the_original_vae,
    "KL for each example": kl_for_each_example,
    "skip in a convolutional network": skip_in_a_convolutional_network,
    "hook upstream of the site": hook_upstream_of_the_site,
    "loss on a cached activation": loss_on_a_cached_activation,
    "tied autoencoder": tied_autoencoder,
    "weight penalty": weight_penalty,
    "LSTM reads the units": lambda: recurrent(nn.LSTM),
    "GRU reads the units": lambda: recurrent(nn.GRU),
    "self-attention reads the units": attention,
    "GPT-2": gpt2,
    "ResNet": resnet,
    "transformer encoder": transformer_encoder,
    "U-Net": unet,
    "tied embedding": tied_embedding,
    "silent site": silent_site,
    "experts": experts,
    "functional reader": functional_reader,
    "gradient hook on a writer": gradient_hook_on_a_writer,
    "centralized gradient": centralized_gradient,
    "function that adds to gradients": function_that_adds_to_gradients,
    "gradient hook on a reader": gradient_hook_on_a_reader,
    "backward pre-hook before the site": backward_pre_hook_before_the_site,
    "gradient hook on an activation": gradient_hook_on_an_activation,
    "codebook read by subtraction": lambda: per_unit(lambda x, c: (x[:, None] - c).square().sum(-1), 3),
    "codebook read by distance": lambda: per_unit(torch.cdist, 3),
    "codes chosen from a codebook": lambda: per_unit(_chosen_code, 3),
    "bias of each unit": lambda: per_unit(torch.add),
    "bias of each unit, in place": lambda: per_unit(lambda x, bias: (2 * x).add_(bias)),
    "states of a GRU": lambda: states(nn.GRU, inside=True),
    "states of an LSTM": lambda: states(nn.LSTM, inside=True),
    "states of an RNN": lambda: states(nn.RNN, inside=True),
    "states of a GRU, from outside": lambda: states(nn.GRU, inside=False),
    "states of a GRU of two layers": lambda: states(nn.GRU, inside=True, num_layers=2),
    "states of an LSTM in both directions": lambda: states(nn.LSTM, inside=True, bidirectional=True),
    "states of a GRU at level parameters": states_at_level_parameters,
    "loop over a cell": lambda: cell_loop(last=False),
    "loop over a cell, its last state": lambda: cell_loop(last=True),
}
