"""Models that surgery is tried on, and where a label to forget has its units in them."""

import torch
from torch import nn

import gradroute as gr
from architectures import _gpt2, _resnet

IDS = torch.tensor([[1, 5, 3], [0, 2, 2]])
IMAGES = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
ROWS = torch.randn(4, 5, generator=torch.Generator().manual_seed(0))
HEADS = gr.RoutingSpec({"retain": 0, "forget": 1}, 2).repeat(8)


def spec(width, shared=()):
    """The last two units of the label to forget."""
    return gr.RoutingSpec({"retain": slice(0, width - 2), "forget": [width - 2, width - 1]}, width, shared=shared)


def channels(width):
    return gr.Site(spec(width), dim=1)


def gpt2():
    """GPT-2 with weights large enough that a unit less shows in the output."""
    model = _gpt2().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


def eager():
    model = gpt2()
    model.set_attn_implementation("eager")
    return model


def llama(heads=2):
    """Rotary positions, RMS norms and gated MLPs; heads that may share keys and values."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=heads,
        num_key_value_heads=2, vocab_size=11,
        max_position_embeddings=8, initializer_range=0.3, bos_token_id=0, eos_token_id=0, pad_token_id=None,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def resnet():
    """A ResNet with batch norms such as training leaves them."""
    model = _resnet().eval()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_var.uniform_(0.5, 2)
                module.weight.uniform_(0.5, 1.5)
                module.bias.uniform_(0.5, 1.5)
                module.running_mean.uniform_(-1, 0)  # so that a channel that is 0 before the norm is none after it
    return model


def mlp(activation=None, norm=False):
    layers = [nn.Linear(5, 8), nn.BatchNorm1d(8) if norm else nn.Identity(), activation or nn.ReLU(), nn.Dropout(0.5)]
    model = nn.Sequential(*layers, nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 2))
    if norm:
        with torch.no_grad():
            for tensor in (model[1].weight, model[1].bias, model[1].running_mean):
                tensor.normal_()
    return model.eval()


def output(model, x):
    with torch.no_grad():
        result = model(x)
    return getattr(result, "logits", result)


def agree(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


def normalized():
    return nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(5, 8)), nn.GELU(), nn.Linear(8, 2))


class Gated(nn.Module):
    """The MLP of Llama, with a residual connection around it."""

    def __init__(self):
        super().__init__()
        self.gate, self.up, self.down = nn.Linear(6, 8), nn.Linear(6, 8), nn.Linear(8, 6)

    def forward(self, x):
        return x + self.down(nn.functional.silu(self.gate(x)) * self.up(x))


class Attention(nn.Module):
    """Attention by hand, with separate projections, as in many models."""

    def __init__(self):
        super().__init__()
        self.q, self.k, self.v, self.out = nn.Linear(6, 12), nn.Linear(6, 12), nn.Linear(6, 12), nn.Linear(12, 6)

    def forward(self, x):
        q, k, v = (layer(x).unflatten(-1, (-1, 4)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        weights = (q @ k.transpose(-1, -2) / 2).softmax(-1)
        return self.out((weights @ v).transpose(1, 2).flatten(2))


class Sized(Attention):
    """Attention that knows its number of heads, and takes their sizes from its weights."""

    def __init__(self):
        super().__init__()
        self.num_heads = 3

    def forward(self, x):
        q, k, v = (layer(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        return self.out(nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


def heads_and_features(heads, features, size):
    """The spec in which "forget" has these heads, and these features of all heads: what is left is a product."""
    kept = [head * size + f for head in range(heads[0]) for f in range(features[0])]
    width = heads[1] * size
    return gr.RoutingSpec({"retain": kept, "forget": [unit for unit in range(width) if unit not in kept]}, width)


class Grouped(Attention):
    """Attention whose four heads share two of keys and values."""

    def __init__(self):
        super().__init__()
        self.q, self.k, self.v, self.out = nn.Linear(6, 16), nn.Linear(6, 8), nn.Linear(6, 8), nn.Linear(16, 6)

    def forward(self, x):
        q, k, v = (layer(x).unflatten(-1, (-1, 4)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        attended = nn.functional.scaled_dot_product_attention(q, k, v, enable_gqa=True)
        return self.out(attended.transpose(1, 2).flatten(2))


class Concatenated(nn.Module):
    """A skip connection that concatenates, and a hidden layer of which one part gates the other."""

    def __init__(self):
        super().__init__()
        self.first, self.act, self.last = nn.Linear(5, 16), nn.SiLU(), nn.Linear(13, 2)

    def forward(self, x):
        gate, value = self.first(x).chunk(2, -1)
        return self.last(torch.cat([self.act(gate) * value, x], -1))


class Fused(nn.Module):
    """Attention with one projection for queries, keys and values, as in vision transformers."""

    def __init__(self):
        super().__init__()
        self.qkv, self.out = nn.Linear(6, 36), nn.Linear(12, 6)

    def forward(self, x):
        q, k, v = self.qkv(x).unflatten(-1, (3, -1, 4)).permute(2, 0, 3, 1, 4).unbind(0)
        return self.out(nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Summed(nn.Module):
    """A hidden layer that is the sum of two, as in a recurrent cell, or of two calls of one."""

    def __init__(self, activation, *, twice=False):
        super().__init__()
        self.a, self.act, self.last = nn.Linear(5, 8), activation, nn.Linear(8, 2)
        self.b = self.a if twice else nn.Linear(5, 8)

    def forward(self, x):
        return self.last(self.act(self.a(x) + self.b(x * 2)))


class Tied(nn.Module):
    """Two layers that make one hidden layer with one weight."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.act, self.last = nn.Linear(5, 8), nn.Linear(5, 8), nn.Sigmoid(), nn.Linear(8, 2)
        self.b.weight = self.a.weight

    def forward(self, x):
        return self.last(self.act(self.a(x)) * self.b(x))


def negative_before_prelu():
    """A model in which a unit that is off is worth less than 0 when it reaches an activation."""
    model = mlp(nn.PReLU(8), norm=True)
    with torch.no_grad():
        model[1].bias.fill_(-3.0)
    return model


def one_activation_twice():
    """A model in which one activation module has two names."""
    act = nn.ReLU()
    return nn.Sequential(nn.Linear(5, 8), act, nn.Linear(8, 8), act, nn.Linear(8, 2))


class Shared(nn.Module):
    """A hidden layer with two readers, one of which may see it before the site."""

    def __init__(self, around=False):
        super().__init__()
        self.first, self.act, self.a, self.b = nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 2), nn.Linear(8, 2)
        self.around = around

    def forward(self, x):
        h = self.first(x)
        return self.a(self.act(h)) + self.b(h if self.around else self.act(h))


class Twice(nn.Module):
    """A layer that is called twice, on its own output too."""

    def __init__(self):
        super().__init__()
        self.first, self.act, self.last = nn.Linear(5, 5), nn.ReLU(), nn.Linear(5, 2)

    def forward(self, x):
        return self.last(self.act(self.first(self.first(x))))


class UNet(nn.Module):
    """Down and up again, with a skip connection that concatenates and the padding that makes odd sizes fit."""

    def __init__(self, transposed=True):
        super().__init__()
        self.down = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU())
        self.middle = nn.Sequential(nn.MaxPool2d(2), nn.Conv2d(6, 8, 3, padding=1), nn.ReLU())
        self.up = nn.ConvTranspose2d(8, 6, 2, stride=2) if transposed else nn.Conv2d(8, 6, 1)
        self.transposed = transposed
        self.decode = nn.Sequential(nn.Conv2d(12, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 2, 1))
        with torch.no_grad():
            for tensor in (self.down[1].weight, self.down[1].bias, self.down[1].running_mean):
                tensor.normal_()

    def forward(self, x):
        skip = self.down(x)
        h = self.middle(skip)
        if not self.transposed:
            h = nn.functional.interpolate(h, scale_factor=2, mode="bilinear")
        h = self.up(h)
        rows, columns = (skip.shape[d] - h.shape[d] for d in (2, 3))
        h = nn.functional.pad(h, [columns // 2, columns - columns // 2, rows // 2, rows - rows // 2])
        return self.decode(torch.cat([skip, h], 1))


ODD_IMAGES = torch.randn(2, 3, 11, 9, generator=torch.Generator().manual_seed(0))

CASES = {
    "gpt2, activation": (gpt2, {"transformer.h.*.mlp.act": spec(64)}, IDS),
    "gpt2, first layer": (gpt2, {"transformer.h.*.mlp.c_fc": spec(64)}, IDS),
    "gpt2, input of the second": (gpt2, {"transformer.h.*.mlp.c_proj": gr.Site(spec(64), on="input")}, IDS),
    "gpt2, heads": (gpt2, {"transformer.h.*.attn.c_proj": gr.Site(HEADS, on="input")}, IDS),
    "gpt2, both": (
        gpt2,
        {"transformer.h.1.attn.c_proj": gr.Site(HEADS, on="input"), "transformer.h.1.mlp.act": spec(64)},
        IDS,
    ),
    "gpt2, heads, eager attention": (eager, {"transformer.h.0.attn.c_proj": gr.Site(HEADS, on="input")}, IDS),
    "llama, gates": (llama, {"model.layers.*.mlp.act_fn": spec(24)}, IDS),
    "llama, heads": (llama, {"model.layers.*.self_attn.o_proj": gr.Site(HEADS, on="input")}, IDS),
    "llama, all heads that share keys": (
        lambda: llama(heads=4),
        {
            "model.layers.*.self_attn.o_proj": gr.Site(
                gr.RoutingSpec({"retain": [0, 1], "forget": [2, 3]}, 4).repeat(4), on="input"
            )
        },
        IDS,
    ),
    "fused attention": (
        Fused,
        {"out": gr.Site(gr.RoutingSpec({"retain": [0, 2], "forget": 1}, 3).repeat(4), on="input")},
        torch.randn(2, 5, 6),
    ),
    "summed": (lambda: Summed(nn.Sigmoid()), {"act": spec(8)}, ROWS),
    "summed, off in each": (lambda: Summed(nn.ReLU()), {"[ab]": spec(8)}, ROWS),
    "summed, of one layer": (lambda: Summed(nn.ReLU(), twice=True), {"act": spec(8)}, ROWS),
    "tied": (Tied, {"act": spec(8)}, ROWS),
    "one activation of two names": (one_activation_twice, {"1": spec(8)}, ROWS),
    "mlp, prelu": (lambda: mlp(nn.PReLU(8, 0.3)), {"2": spec(8)}, ROWS),
    "mlp, prelu of a negative constant": (negative_before_prelu, {"0": spec(8)}, ROWS),
    "mlp, norm": (lambda: mlp(norm=True), {"1": spec(8)}, ROWS),
    "resnet, norms": (resnet, {"layer1.*.bn1": channels(64), "layer2.0.bn1": channels(128)}, IMAGES),
    "fresh resnet, convolution": (lambda: _resnet().eval(), {"layer1.0.conv1": channels(64)}, IMAGES),
    "mlp": (mlp, {"0": spec(8)}, ROWS),
    "mlp, shared units stay": (mlp, {"2": spec(8, shared=7)}, ROWS),
    "mlp, two layers in a row": (mlp, {"[25]": spec(8)}, ROWS),
    "mlp, norm and sigmoid": (lambda: mlp(nn.Sigmoid(), norm=True), {"0": spec(8)}, ROWS),
    "mlp, softplus, site behind": (lambda: mlp(nn.Softplus()), {"2": spec(8)}, ROWS),
    "gated": (Gated, {"gate": spec(8)}, torch.randn(2, 3, 6)),
    "new heads, and new features of all heads": (
        Sized,
        {"out": gr.Site(heads_and_features((2, 3), (3, 4), 4), on="input")},
        torch.randn(2, 5, 6),
    ),
    "new features of all heads": (
        Sized,
        {"out": gr.Site(heads_and_features((3, 3), (3, 4), 4), on="input")},
        torch.randn(2, 5, 6),
    ),
    "attention by hand": (
        Attention,
        {"out": gr.Site(gr.RoutingSpec({"retain": [0, 2], "forget": 1}, 3).repeat(4), on="input")},
        torch.randn(2, 5, 6),
    ),
    "concatenated, gated by chunks": (Concatenated, {"act": gr.RoutingSpec({"forget": [0, 1]}, 8)}, ROWS),
    "two readers": (Shared, {"act": spec(8)}, ROWS),
    "convolution and flatten": (
        lambda: nn.Sequential(
            nn.Conv2d(3, 6, 3), nn.ReLU(inplace=True), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(6 * 49, 2)
        ),
        {"0": channels(6)},
        IMAGES,
    ),
    "u-net, what a transposed convolution reads": (lambda: UNet().eval(), {"middle.2": channels(8)}, ODD_IMAGES),
    "u-net, what a transposed convolution makes": (lambda: UNet().eval(), {"up": channels(6)}, ODD_IMAGES),
    "u-net, input of a transposed convolution": (
        lambda: UNet().eval(),
        {"up": gr.Site(spec(8), on="input", dim=1)},
        ODD_IMAGES,
    ),
    "u-net, what skips": (lambda: UNet().eval(), {"down.1": channels(6)}, ODD_IMAGES),
    "u-net, interpolated": (
        lambda: UNet(transposed=False).eval(),
        {"middle.2": channels(8), "up": channels(6)},
        ODD_IMAGES,
    ),
    "transposed convolutions, 1d": (
        lambda: nn.Sequential(
            nn.ConvTranspose1d(3, 6, 3, stride=2, output_padding=1), nn.GELU(), nn.ConvTranspose1d(6, 2, 3, bias=False)
        ),
        {"1": channels(6)},
        IMAGES[..., 0],
    ),
    "transposed convolutions, 3d": (
        lambda: nn.Sequential(nn.ConvTranspose3d(3, 6, 2, dilation=2), nn.ReLU(), nn.Conv3d(6, 2, 2)),
        {"0": channels(6)},
        IMAGES[:, :, None, :6, :6],
    ),
    "a transposed convolution of kernel 1, and a constant": (
        lambda: nn.Sequential(nn.Conv2d(3, 6, 3), nn.Sigmoid(), nn.ConvTranspose2d(6, 2, 1)),
        {"0": channels(6)},
        IMAGES,
    ),
    "convolution, sigmoid and mean": (
        lambda: nn.Sequential(nn.Conv2d(3, 6, 3), nn.Sigmoid(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 2)),
        {"0": channels(6)},
        IMAGES,
    ),
}


class Masked(nn.Module):
    """A hidden layer of which some examples read something else, and no constant."""

    def __init__(self):
        super().__init__()
        self.first, self.act, self.last = nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 2)

    def forward(self, x):
        return self.last(torch.where(x[:, :1] > 0, self.act(self.first(x)), 1.0))


ONE = gr.RoutingSpec({"retain": [], "forget": 0}, 1)


def whole(**options):
    """A site on a whole module, which "forget" alone teaches."""
    return gr.Site(ONE, **{"level": "parameters"} | options)


def expert(width=6):
    return nn.Sequential(nn.Linear(width, 9), nn.GELU(), nn.Linear(9, width))


class Mixture(nn.Module):
    """A sparse mixture of experts: each is called on the tokens that chose it, if there are any."""

    def __init__(self, n_experts=3):
        super().__init__()
        self.gate = nn.Linear(6, n_experts)
        self.experts = nn.ModuleList(expert() for _ in range(n_experts))

    def forward(self, x):
        tokens = x.flatten(0, -2)
        weights, chosen = self.gate(tokens).softmax(-1).topk(2)
        out = torch.zeros_like(tokens)
        for number, one in enumerate(self.experts):
            row, place = (chosen == number).nonzero(as_tuple=True)
            if len(row):
                out = out.index_add(0, row, weights[row, place, None] * one(tokens[row]))
        return out.view_as(x)


class Residual(nn.Module):
    """What `add` makes of an input, added to it; behind it a layer, and neurons."""

    def __init__(self, add, around=nn.Identity):
        super().__init__()
        self.add, self.before, self.after = add, around(), mlp()
        self.after[0] = nn.Linear(6, 8)

    def forward(self, x):
        x = self.before(x)
        return self.after(x + self.add(x))


class LowRank(nn.Module):
    """An adapter in parallel to a layer of another width."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 4)
        self.adapter = nn.Sequential(nn.Linear(6, 2, bias=False), nn.Linear(2, 4, bias=False))

    def forward(self, x):
        return self.layer(x) + self.adapter(x)


class Embedded(nn.Module):
    """Tokens and their positions, each embedded."""

    def __init__(self):
        super().__init__()
        self.tokens, self.positions, self.last = nn.Embedding(9, 6), nn.Embedding(9, 6), nn.Linear(6, 2)

    def forward(self, ids):
        return self.last(self.tokens(ids) + self.positions(torch.arange(ids.shape[1])))


class Pair(nn.Module):
    """Returns two tensors, and takes its input by name."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(6, 6), nn.LSTMCell(6, 3)

    def forward(self, *, x):
        return {"a": self.a(x), "rest": (self.b(x)[0], None)}


class Paired(nn.Module):
    """A model whose branch returns two tensors."""

    def __init__(self):
        super().__init__()
        self.pair, self.last = Pair(), nn.Linear(9, 2)

    def forward(self, x):
        made = self.pair(x=x)
        return x.mean() + self.last(torch.cat([made["a"], made["rest"][0]], -1))


class Branches(nn.Module):
    """Convolutions side by side."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, padding=1)
        self.second = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4))
        nn.init.normal_(self.second[1].bias)

    def forward(self, x):
        return (self.first(x) + self.second(x)).relu().mean((2, 3))


TOKENS = torch.randn(3, 5, 6, generator=torch.Generator().manual_seed(0))
CELLS = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))

# The model, its sites, an input, and the modules of which nothing shall be left.
WHOLE_CASES = {
    "expert": (Mixture, {"experts.1": whole()}, TOKENS, ["experts.1"]),
    "expert, at activations": (Mixture, {"experts.1": gr.Site(ONE, dim=None)}, TOKENS, ["experts.1"]),
    "two experts": (Mixture, {"experts.[02]": whole()}, TOKENS, ["experts.0", "experts.2"]),
    "adapter": (LowRank, {"adapter": whole()}, CELLS, ["adapter"]),
    "in a residual connection": (lambda: Residual(expert()), {"add": whole()}, TOKENS, ["add"]),
    "and neurons elsewhere": (
        lambda: Residual(expert()), {"add": whole(), "after.2": spec(8)}, TOKENS, ["add"]
    ),
    "and neurons that feed it": (
        lambda: Residual(nn.Linear(6, 6), around=expert), {"add": whole(), "before.1": spec(9)}, TOKENS, ["add"]
    ),
    "gpt2, an MLP": (gpt2, {"transformer.h.0.mlp": whole()}, IDS, ["transformer.h.0.mlp"]),
    "an embedding": (Embedded, {"positions": whole()}, IDS, ["positions"]),
    "an embedding, at activations": (Embedded, {"tokens": gr.Site(ONE, dim=None)}, IDS, ["tokens"]),
    "a linear layer": (lambda: Summed(nn.Tanh()), {"a": whole()}, ROWS, ["a"]),
    "a convolution": (Branches, {"first": whole(dim=1)}, IMAGES, ["first"]),
    "a convolution and its norm": (Branches, {"second": whole(dim=1)}, IMAGES, ["second"]),
    "of one unit": (
        lambda: nn.Sequential(nn.Linear(5, 1), nn.Tanh(), nn.Linear(1, 2)), {"0": gr.Site(ONE)}, ROWS, ["0"]
    ),
}  # fmt: skip
