"""Ablating, expanding and contracting: on models that nobody here wrote, and what is refused."""

import copy

import pytest
import torch
from torch import nn

import gradroute as gr
from architectures import _gpt2, _resnet
from gradroute.errors import SiteError, SpecError, UsageError
from gradroute.surgery import ablate_, contract, contract_, expand_

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


def llama():
    """Rotary positions, RMS norms and gated MLPs."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, vocab_size=11,
        max_position_embeddings=8, initializer_range=0.3, bos_token_id=0, eos_token_id=0, pad_token_id=None,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def resnet():
    """ResNet-18 with batch norms such as training leaves them."""
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
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


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
    "resnet, norms": (resnet, {"layer1.*.bn1": channels(64), "layer3.0.bn1": channels(256)}, IMAGES),
    "fresh resnet, convolution": (lambda: _resnet().eval(), {"layer1.0.conv1": channels(64)}, IMAGES),
    "mlp": (mlp, {"0": spec(8)}, ROWS),
    "mlp, shared units stay": (mlp, {"2": spec(8, shared=7)}, ROWS),
    "mlp, two layers in a row": (mlp, {"[25]": spec(8)}, ROWS),
    "mlp, norm and sigmoid": (lambda: mlp(nn.Sigmoid(), norm=True), {"0": spec(8)}, ROWS),
    "mlp, softplus, site behind": (lambda: mlp(nn.Softplus()), {"2": spec(8)}, ROWS),
    "gated": (Gated, {"gate": spec(8)}, torch.randn(2, 3, 6)),
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
    "convolution, sigmoid and mean": (
        lambda: nn.Sequential(nn.Conv2d(3, 6, 3), nn.Sigmoid(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 2)),
        {"0": channels(6)},
        IMAGES,
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_contracting_gives_a_smaller_copy_that_computes_what_the_ablated_model_does(case):
    build, sites, x = CASES[case]
    model = build()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    router = gr.Router(model, sites)
    with router.ablated("forget"):
        expected = output(model, x)
    assert not torch.allclose(expected, output(model, x), atol=1e-4), "the units matter"
    smaller = contract(router, "forget", example=x).model
    agree(output(smaller, x), expected)
    agree(output(smaller, x.flip(0)), expected.flip(0))
    assert sum(p.numel() for p in smaller.parameters()) < sum(p.numel() for p in model.parameters())
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), "the original is as it was"
    mine = {p.untyped_storage().data_ptr() for p in model.state_dict().values()}
    assert mine.isdisjoint(p.untyped_storage().data_ptr() for p in smaller.state_dict().values())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in smaller.modules())


@pytest.mark.parametrize("case", CASES)
def test_ablating_for_good_computes_the_same_with_the_same_keys_and_shapes(case):
    build, sites, x = CASES[case]
    model = build()
    router = gr.Router(model, sites)
    with router.ablated("forget"):
        expected = output(model, x)
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    ablate_(router, "forget", example=x)
    agree(output(model, x), expected)
    assert {name: tensor.shape for name, tensor in model.state_dict().items()} == shapes
    plain = build()
    plain.load_state_dict(model.state_dict())
    agree(output(plain, x), expected)


@pytest.mark.parametrize("on", ["output", "input"])
def test_sites_of_either_level_are_cut_and_folded(on):
    model = mlp()
    router = gr.Router(model, {"0" if on == "output" else "4": gr.Site(spec(8), on=on, level="parameters")})
    with router.ablated("forget"):
        expected = output(model, ROWS)
    smaller = contract(router, "forget", example=ROWS).model
    assert "forward" not in vars(smaller[0] if on == "output" else smaller[4]), "nothing of the router is left"
    agree(output(smaller, ROWS), expected)
    smaller.train()(ROWS).sum().backward()
    ablate_(router, "forget")
    agree(output(model, ROWS), expected)


def test_half_precision_is_compared_as_finely_as_it_computes():
    model = nn.Sequential(nn.Linear(5, 8), nn.Sigmoid(), nn.Linear(8, 2)).bfloat16()
    router = gr.Router(model, {"0": spec(8)})
    with router.ablated("forget"):
        expected = output(model, ROWS.bfloat16())
    smaller = contract(router, "forget", example=ROWS.bfloat16()).model
    torch.testing.assert_close(output(smaller, ROWS.bfloat16()), expected, rtol=0.02, atol=0.02)
    assert smaller[0].weight.dtype == torch.bfloat16


def test_layers_that_are_called_again_and_again_are_cut_once():
    class Looped(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.up, self.act, self.down = nn.Linear(5, 6), nn.Linear(6, 8), nn.GELU(), nn.Linear(8, 6)

        def forward(self, x):
            x = self.first(x)
            for _ in range(3):
                x = x + self.down(self.act(self.up(x)))
            return x

    model = Looped()
    router = gr.Router(model, {"act": spec(8)})
    with router.ablated("forget"):
        expected = output(model, ROWS)
    agree(output(contract(router, "forget", example=ROWS).model, ROWS), expected)
    ablate_(router, "forget", example=ROWS)
    agree(output(model, ROWS), expected)


def test_contracted_layers_say_their_sizes_and_the_heads_that_are_left():
    router = gr.Router(gpt2(), CASES["gpt2, both"][1])
    contracted = contract(router, "forget", example=IDS)
    block = contracted.model.transformer.h[1]
    assert (block.mlp.c_fc.nf, block.mlp.c_proj.nx) == (62, 62)
    assert (block.attn.num_heads, block.attn.split_size, block.attn.c_attn.nf, block.attn.c_proj.nx) == (1, 8, 24, 8)
    assert contracted.kept["transformer.h.1.attn.c_proj.weight"] == {0: tuple(range(8))}
    smaller = contract(gr.Router(resnet(), CASES["resnet, norms"][1]), "forget", example=IMAGES).model
    first = smaller.layer1[0]
    assert (first.conv1.out_channels, first.bn1.num_features, first.conv2.in_channels) == (62, 62, 62)


def test_a_contracted_language_model_caches_and_generates():
    smaller = contract(gr.Router(gpt2(), CASES["gpt2, heads"][1]), "forget", example=IDS).model
    whole = smaller(IDS, use_cache=False).logits[:, -1]
    first = smaller(IDS[:, :2], use_cache=True)
    step = smaller(IDS[:, 2:], past_key_values=first.past_key_values).logits[:, -1]
    torch.testing.assert_close(step, whole, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("build", "sites", "x", "reason"),
    [
        (resnet, {"layer1.0.conv2": channels(64)}, IMAGES, r"add in 'layer1\.0' adds up.*residual"),
        (
            resnet,
            {"layer1.0.conv1": channels(64)},
            IMAGES,
            r"conv2d in 'layer1\.0\.conv2' still reads a constant other",
        ),
        (gpt2, {"transformer.h.0.mlp.c_proj": spec(16)}, IDS, r"add in 'transformer\.h\.0' adds up.*residual"),
        (gpt2, {"transformer.h.0.mlp": spec(16)}, IDS, "residual"),
        (gpt2, {"transformer.h.0.attn.c_proj": gr.Site(spec(16), on="input")}, IDS, "whole heads.*no part of one"),
        (mlp, {"6": gr.RoutingSpec({"forget": 0, "retain": 1}, 2)}, ROWS, "part of the model's output"),
        (lambda: Shared(around=True), {"act": spec(8)}, ROWS, "'b' reads the units, but not only by way of the site"),
        (lambda: nn.Sequential(nn.Linear(5, 8), nn.LayerNorm(8), nn.Linear(8, 2)), {"0": spec(8)}, ROWS, "mixes the"),
        (lambda: nn.Sequential(nn.Linear(5, 8), nn.Softmax(-1), nn.Linear(8, 2)), {"0": spec(8)}, ROWS, "mixes the"),
        (lambda: nn.Sequential(nn.ReLU(), nn.Linear(5, 2)), {"0": spec(5)}, ROWS, "the model's own input"),
        (
            lambda: nn.Sequential(nn.Conv2d(3, 6, 3), nn.Conv2d(6, 6, 3, groups=6), nn.Conv2d(6, 2, 3)),
            {"0": channels(6)},
            IMAGES,
            "grouped convolution",
        ),
        (
            lambda: nn.Sequential(nn.Conv2d(3, 6, 3), nn.Sigmoid(), nn.Conv2d(6, 2, 3, padding=1)),
            {"0": channels(6)},
            IMAGES,
            "a constant other than 0 .* at the padded edges",
        ),
        (lambda: nn.Sequential(nn.Linear(5, 8), nn.GLU(), nn.Linear(4, 2)), {"0": spec(8)}, ROWS, "glu.*not known"),
        (
            Grouped,
            {"out": gr.Site(gr.RoutingSpec({"forget": 0}, 4).repeat(4), on="input")},
            torch.randn(2, 5, 6),
            "shares keys and values between heads",
        ),
        (Twice, {"first": gr.RoutingSpec({"forget": 0, "retain": 1}, 5)}, ROWS, "model's own input"),
    ],
)
def test_other_uses_of_a_unit_are_refused_with_the_reason(build, sites, x, reason):
    model = build().eval()
    before = copy.deepcopy(model.state_dict())
    router = gr.Router(model, sites)
    with pytest.raises(SiteError, match=reason):
        contract(router, "forget", example=x)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_forward_that_computes_with_fixed_sizes_is_refused():
    class Fixed(Attention):
        def forward(self, x):
            q, k, v = (layer(x).view(*x.shape[:2], 3, 4).transpose(1, 2) for layer in (self.q, self.k, self.v))
            return self.out(nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))

    _, sites, x = CASES["attention by hand"]
    with pytest.raises(SiteError, match=r"cannot run: its forward code computes with sizes.*ablate_"):
        contract(gr.Router(Fixed(), sites), "forget", example=x)


def test_a_result_that_is_not_that_of_the_ablated_model_is_refused():
    model = mlp()
    model[0].register_forward_hook(lambda module, args, out: out + 1 if module.out_features < 8 else None)
    with pytest.raises(SiteError, match="would not compute what the ablated one does"):
        contract(gr.Router(model, {"2": spec(8)}), "forget", example=ROWS)


def test_outputs_of_minus_infinity_make_no_comparison_lenient():
    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = mlp()

        def forward(self, x):
            out = self.inner(x) + (self.inner[0].out_features < 8)
            return torch.where(torch.tensor([True, False]), out, -torch.inf)

    with pytest.raises(SiteError, match="would not compute what the ablated one does"):
        contract(gr.Router(Masked(), {"inner.2": spec(8)}), "forget", example=ROWS)


def test_what_cannot_be_ablated_is_an_error_of_the_block_too():
    model = mlp()
    router = gr.Router(model, {"0": spec(8)})
    for operate in (ablate_, lambda *labels: contract(*labels, example=ROWS)):
        with pytest.raises(SpecError, match="not a label"):
            operate(router, "forgot")
        with pytest.raises(UsageError, match="needs the labels"):
            operate(router)
    router.remove()
    with pytest.raises(UsageError, match="removed"):
        ablate_(router, "forget")


class TestAblate:
    def test_every_other_unit_stays_bit_for_bit(self):
        model = mlp()
        before = copy.deepcopy(model.state_dict())
        ablate_(gr.Router(model, {"0": spec(8), "6": gr.Site(spec(8), on="input")}), "forget")
        for name, tensor in model.state_dict().items():
            expected = before[name]
            if name.startswith("0."):
                expected[6:] = 0
            elif name == "6.weight":
                expected[:, 6:] = 0
            assert torch.equal(tensor, expected)

    @pytest.mark.parametrize(
        ("build", "sites", "reason"),
        [
            (mlp, {"2": spec(8)}, r"site '2': of a ReLU no weights are known.*example=.*move the site"),
            (gpt2, {"transformer.h.0.ln_1": gr.Site(spec(16), on="input")}, "LayerNorm does more with its input than"),
            (gpt2, {"transformer.h.0.attn": gr.Site(spec(16), index=0)}, "GPT2Attention"),
            (gpt2, {"transformer.wte": spec(16)}, r"tied: 'transformer\.wte\.weight' and 'lm_head\.weight'"),
            (normalized, {"0": spec(8)}, "of a ParametrizedLinear no weights are known"),
            (mlp, {"0": gr.Site(spec(8), dim=1)}, "dim=1 may be another dimension"),
        ],
    )
    def test_refuses_what_is_not_exact_and_says_why(self, build, sites, reason):
        with pytest.raises(SiteError, match=reason):
            ablate_(gr.Router(build(), sites), "forget")

    @pytest.mark.parametrize(
        ("build", "sites", "x"),
        [
            (gpt2, {"transformer.h.*.mlp": spec(16)}, IDS),
            (gpt2, {"transformer.h.1.attn": gr.Site(spec(16), index=0)}, IDS),
            (resnet, {"layer1.0.conv2": channels(64)}, IMAGES),
            (resnet, {"layer2.0.downsample": channels(128)}, IMAGES),
        ],
    )
    def test_folds_into_the_writers_of_a_residual_stream_too(self, build, sites, x):
        model = build()
        router = gr.Router(model, sites)
        with router.ablated("forget"):
            expected = output(model, x)
        assert not torch.allclose(expected, output(model, x), atol=1e-4)
        ablate_(router, "forget", example=x)
        agree(output(model, x), expected)

    def test_a_weight_that_is_computed_is_no_place_for_zeros(self):
        with pytest.raises(SiteError, match="_weight_norm in .* is not known"):
            ablate_(gr.Router(normalized(), {"1": spec(8)}), "forget", example=ROWS)

    def test_changes_nothing_where_the_example_shows_another_result(self):
        model = mlp()
        model[0].register_forward_hook(lambda module, args, out: out + 1 if module.weight[7].any() else out)
        before = copy.deepcopy(model.state_dict())
        with pytest.raises(SiteError, match="nothing was changed"):
            ablate_(gr.Router(model, {"0": spec(8)}), "forget", example=ROWS)
        assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())

    def test_restores_modes_and_configs(self):
        model = gpt2().train()
        model.transformer.h[0].eval()
        ablate_(gr.Router(model, {"transformer.h.*.mlp.act": spec(64)}), "forget", example=IDS)
        assert model.training
        assert not model.transformer.h[0].training
        assert model.config.use_cache

    def test_reinit_draws_at_the_scale_of_the_rest(self):
        model = nn.Sequential(nn.Linear(400, 100), nn.ReLU(), nn.Linear(100, 2))
        with torch.no_grad():
            model[0].weight.normal_(0, 0.3)
            model[0].bias.normal_(2.0, 0.1)
            model[0].weight[50:] = 77
        kept = model[0].weight[:50].clone()
        router = gr.Router(model, {"0": gr.RoutingSpec.split({"retain": 50, "forget": 50})})
        ablate_(router, "forget", reinit=True, generator=torch.Generator().manual_seed(3))
        fresh = model[0].weight.detach()[50:].clone()
        assert abs(fresh.mean().item()) < 0.02
        assert 0.28 < fresh.std().item() < 0.32
        assert abs(model[0].bias[50:].mean().item() - 2.0) < 0.1
        assert torch.equal(model[0].weight[:50], kept)
        ablate_(router, "forget", reinit=True, generator=torch.Generator().manual_seed(3))
        assert torch.equal(model[0].weight[50:], fresh), "the generator decides"
        ablate_(router, "forget", reinit=lambda rows: rows.fill_(rows.shape[0]))
        assert torch.equal(model[0].weight[50:], torch.full((50, 400), 50.0))


class TestAblatedBlock:
    def test_a_step_on_the_ablated_forward_leaves_the_units_alone_and_teaches_the_rest(self):
        model = mlp().train()
        router = gr.Router(model, {"2": spec(8)})
        before = copy.deepcopy(model.state_dict())
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        labels = router.sites["2"][0].spec.encode(["retain", "forget", "retain", "forget"])
        with router(labels), router.ablated("forget"):
            model(ROWS).square().sum().backward()
        optimizer.step()
        for name, part in (("0.weight", slice(6, 8)), ("0.bias", slice(6, 8))):
            assert torch.equal(model.state_dict()[name][part], before[name][part])
        assert torch.equal(model[4].weight[:, 6:], before["4.weight"][:, 6:])
        assert not torch.equal(model[0].weight[:6], before["0.weight"][:6])

    @pytest.mark.parametrize("inside", [False, True])
    def test_compiles_whole_in_training_and_agrees(self, inside):
        model = mlp().train()
        model[3].p = 0.0
        router = gr.Router(model, {"2": spec(8)})
        labels = torch.tensor([0, 1, 1, 0])

        def ablated(x):
            with router.ablated("forget"):
                return model(x)

        grads = []
        for compiled in (False, True):
            run = ablated if inside else model
            run = torch.compile(run, backend="aot_eager", fullgraph=True) if compiled else run
            model.zero_grad()
            with router(labels):
                if inside:
                    run(ROWS).square().sum().backward()
                else:
                    with router.ablated("forget"):
                        run(ROWS).square().sum().backward()
            grads.append([parameter.grad.clone() for parameter in model.parameters()])
        for eager, whole in zip(*grads, strict=True):
            torch.testing.assert_close(whole, eager)
        assert grads[0][0][:6].any()
        assert not grads[0][0][6:].any()


PAIRS = {
    "linear": (
        lambda: nn.Sequential(nn.Linear(5, 8), nn.GELU(), nn.Linear(8, 2)), lambda m: (m[0], m[2], [m[1]]), ROWS
    ),
    "convolution": (resnet, lambda m: (m.layer1[0].conv1, m.layer1[0].conv2, [m.layer1[0].bn1, m.layer1[0].relu]), IMAGES),
    "flatten": (
        lambda: nn.Sequential(nn.Conv2d(3, 6, 3), nn.Sigmoid(), nn.Flatten(), nn.Linear(6 * 196, 2)),
        lambda m: (m[0], m[3], [m[1], m[2]]),
        IMAGES,
    ),
    "gpt2": (gpt2, lambda m: (m.transformer.h[0].mlp.c_fc, m.transformer.h[0].mlp.c_proj, [m.transformer.h[0].mlp.act]), IDS),
    "gated": (Gated, lambda m: ([m.gate, m.up], m.down, []), torch.randn(2, 3, 6)),
    "two readers": (Shared, lambda m: (m.first, [m.a, m.b], [m.act]), ROWS),
}  # fmt: skip


class TestExpand:
    @pytest.mark.parametrize("pair", PAIRS)
    def test_the_output_stays_and_contracting_is_its_inverse(self, pair):
        build, layers, x = PAIRS[pair]
        model = build().eval()
        producer, consumer, between = layers(model)
        expected = output(model, x)
        before = copy.deepcopy(model.state_dict())
        sizes = repr(model)
        new = expand_(producer, consumer, 3, between=between)
        assert new.stop - new.start == 3
        agree(output(model, x), expected)
        assert repr(model) != sizes
        contract_(producer, consumer, new, between=between)
        assert repr(model) == sizes
        assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())

    def test_new_units_learn_and_old_parameters_keep_what_they_were(self):
        model = mlp().train()
        model[0].bias.requires_grad_(False)
        model.double()
        new = expand_(model[0], model[4], 2, between=model[1:4], generator=torch.Generator().manual_seed(1))
        assert (model[0].weight.dtype, model[0].bias.requires_grad) == (torch.float64, False)
        assert isinstance(model[0].weight, nn.Parameter)
        with torch.no_grad():
            assert not model[4].weight[:, new].any()
            assert 0.5 < (model[0].weight[new].std() / model[0].weight[:8].std()).item() < 2
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        rows = model[0].weight[new].clone()
        for _ in range(2):
            optimizer.zero_grad()
            model(ROWS.double()).square().sum().backward()
            optimizer.step()
        assert model[4].weight[:, new].any()
        assert not torch.equal(model[0].weight[new], rows)

    def test_rows_by_an_init_of_ones_own(self):
        model = mlp()
        new = expand_(model[0], model[4], 2, between=model[1:4], init=nn.init.ones_)
        assert torch.equal(model[0].weight[new], torch.ones(2, 5))
        assert torch.equal(model[0].bias[new], torch.zeros(2))

    @pytest.mark.parametrize(
        ("operate", "reason"),
        [
            (lambda m: expand_(m[0], m[6], 0), "extra must be an integer of at least 1; got 0"),
            (lambda m: expand_(m[0], m[4], 2, between=[nn.LayerNorm(8)]), "LayerNorm lies between, which mixes"),
            (lambda m: expand_(m[0], m[4], 2, between=[nn.PReLU(8)]), "a PReLU with parameters lies between"),
            (lambda m: expand_(m[0], m[4], 2, between=[nn.BatchNorm1d(4)]), "a norm between is over 4 units"),
            (lambda m: expand_(m[0], nn.Linear(9, 2), 2), "makes 8 units, but a consumer reads 9"),
            (lambda m: expand_(nn.LSTM(5, 8), m[4], 2), "of a LSTM it is not known"),
            (lambda m: expand_(nn.LayerNorm(8), m[4], 2), "LayerNorm is no layer between whose output"),
            (lambda m: expand_([m[0], nn.Linear(5, 4)], m[4], 2), "different numbers of units: 4, 8"),
            (lambda m: expand_([], m[4], 2), "expected a module or several; got none"),
            (lambda m: contract_(m[0], m[4], [8]), "no unit 8: they are numbered 0 to 7"),
            (lambda m: contract_(m[0], m[4], slice(None)), "all 8 units would go"),
        ],
    )
    def test_refuses_with_the_reason_and_changes_nothing(self, operate, reason):
        model = mlp()
        before = repr(model)
        with pytest.raises(SiteError, match=reason):
            operate(model)
        assert repr(model) == before


OPTIMIZERS = {
    "adamw": lambda parameters: torch.optim.AdamW(parameters, lr=0.1, amsgrad=True),
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9, weight_decay=0.1),
    "rmsprop": lambda parameters: torch.optim.RMSprop(parameters, lr=0.01, centered=True),
}


def train(model, optimizer, x=ROWS):
    optimizer.zero_grad()
    model(x).square().sum().backward()
    optimizer.step()


class TestOptimizer:
    @pytest.mark.parametrize("kind", OPTIMIZERS)
    def test_a_step_after_expanding_is_that_of_the_original(self, kind):
        model = mlp()
        optimizer = OPTIMIZERS[kind](model.parameters())
        train(model, optimizer)
        plain, plain_optimizer = copy.deepcopy((model, optimizer))
        new = expand_(model[0], model[4], 3, between=model[1:4], optimizer=optimizer)
        kept = [value for value in optimizer.state[model[0].weight].values() if torch.is_tensor(value) and value.ndim]
        assert kept
        assert all(value[: new.start].any() and not value[new].any() for value in kept)
        train(model, optimizer)
        train(plain, plain_optimizer)
        agree(model[0].weight[: new.start], plain[0].weight)
        agree(model[4].weight[:, : new.start], plain[4].weight)
        assert {id(p) for group in optimizer.param_groups for p in group["params"]} == {
            id(p) for p in model.parameters()
        }
        assert all(
            value.shape == parameter.shape
            for parameter, state in optimizer.state.items()
            for value in state.values()
            if isinstance(value, torch.Tensor) and value.ndim
        )

    @pytest.mark.parametrize("kind", OPTIMIZERS)
    def test_a_step_after_contracting_is_that_of_the_ablated_original(self, kind):
        model = mlp()
        optimizer = OPTIMIZERS[kind](model.parameters())
        train(model, optimizer)
        router = gr.Router(model, {"2": spec(8)})
        contracted = contract(router, "forget", example=ROWS, optimizer=optimizer)
        train(contracted.model, contracted.optimizer)
        with router.ablated("forget"):
            train(model, optimizer)
        agree(contracted.model[0].weight, model[0].weight[:6])
        agree(contracted.model[4].weight, model[4].weight[:, :6])
        agree(contracted.model[6].bias, model[6].bias)
        assert contracted.model[0].weight.shape == (6, 5)

    def test_states_of_another_shape_and_foreign_parameters_are_refused(self):
        model = mlp()
        optimizer = torch.optim.Adafactor(model.parameters())
        train(model, optimizer)
        before = repr(model)
        with pytest.raises(UsageError, match=r"Adafactor keeps 'row_var' in another shape"):
            expand_(model[0], model[4], 1, optimizer=optimizer)
        assert repr(model) == before
        both = torch.optim.SGD([*model.parameters(), nn.Parameter(torch.ones(1))], lr=0.1)
        with pytest.raises(UsageError, match="parameters that are not the model's"):
            contract(gr.Router(model, {"2": spec(8)}), "forget", example=ROWS, optimizer=both)
