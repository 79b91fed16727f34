"""`contract`: a smaller model computes what the ablated one does, or the reason why it cannot."""

import copy

import pytest
import torch
from torch import nn

import gradroute as gr
from gradroute.errors import SiteError
from gradroute.surgery import ablate_, contract
from surgery_cases import (
    CASES,
    IDS,
    IMAGES,
    ROWS,
    Attention,
    Grouped,
    Shared,
    Summed,
    Twice,
    agree,
    channels,
    gpt2,
    mlp,
    output,
    resnet,
    spec,
)


class Masked(nn.Module):
    """A hidden layer of which some examples read something else, and no constant."""

    def __init__(self):
        super().__init__()
        self.first, self.act, self.last = nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 2)

    def forward(self, x):
        return self.last(torch.where(x[:, :1] > 0, self.act(self.first(x)), 1.0))


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


# Older transformers have no `cache`.
@pytest.mark.filterwarnings("ignore:`past_key_values` is deprecated:FutureWarning")
def test_a_contracted_language_model_caches_and_generates():
    smaller = contract(gr.Router(gpt2(), CASES["gpt2, heads"][1]), "forget", example=IDS).model
    whole = smaller(IDS, use_cache=False).logits[:, -1]
    first = smaller(IDS[:, :2], use_cache=True)
    step = smaller(IDS[:, 2:], past_key_values=first.past_key_values).logits[:, -1]
    torch.testing.assert_close(step, whole, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("build", "sites", "x", "reason"),
    [
        (resnet, {"layer1.0.conv2": channels(64)}, IMAGES, r"add in 'layer1\.0' joins.*residual"),
        (
            resnet,
            {"layer1.0.conv1": channels(64)},
            IMAGES,
            r"conv2d in 'layer1\.0\.conv2' still reads a constant other",
        ),
        (gpt2, {"transformer.h.0.mlp.c_proj": spec(16)}, IDS, r"add in 'transformer\.h\.0' joins.*residual"),
        (gpt2, {"transformer.h.0.mlp": spec(16)}, IDS, "residual"),
        (gpt2, {"transformer.h.0.attn.c_proj": gr.Site(spec(16), on="input")}, IDS, "whole heads.*no part of one"),
        (mlp, {"6": gr.RoutingSpec({"forget": 0, "retain": 1}, 2)}, ROWS, "part of the model's output"),
        (lambda: Shared(around=True), {"act": spec(8)}, ROWS, "'b' reads the units, but not only by way of the site"),
        (lambda: nn.Sequential(nn.Linear(5, 8), nn.LayerNorm(8), nn.Linear(8, 2)), {"0": spec(8)}, ROWS, "mixes the"),
        (
            lambda: nn.Sequential(nn.Conv2d(3, 6, 3), nn.GroupNorm(2, 6), nn.Conv2d(6, 2, 3)),
            {"0": channels(6)},
            IMAGES,
            "group_norm in '1' mixes the units of each group",
        ),
        (lambda: Summed(nn.ReLU()), {"a": spec(8)}, ROWS, "add joins the units with another tensor"),
        (Masked, {"act": spec(8)}, ROWS, "where joins the units with another tensor"),
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


class Branching(nn.Module):
    """A model whose path depends on its input."""

    def __init__(self):
        super().__init__()
        self.first, self.act, self.last = nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 2)

    def forward(self, x):
        return self.last(self.act(self.first(x if x.sum() > 0 else -x)))


def test_a_model_that_cannot_be_exported_is_refused():
    with pytest.raises(SiteError, match="Branching cannot be exported on this example"):
        contract(gr.Router(Branching(), {"act": spec(8)}), "forget", example=ROWS)


def test_a_site_that_the_example_does_not_reach_is_refused():
    model = nn.Sequential(mlp(), mlp())
    model.forward = model[0].forward
    with pytest.raises(SiteError, match=r"sites '1\.2' did not run on this example"):
        contract(gr.Router(model, {"1.2": spec(8)}), "forget", example=ROWS)


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


def test_small_outputs_are_compared_as_finely_as_large_ones():
    class Small(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = mlp()

        def forward(self, x):
            return self.inner(x) * (1e-6 if self.inner[0].out_features == 8 else 2e-6)

    with pytest.raises(SiteError, match="would not compute what the ablated one does"):
        contract(gr.Router(Small(), {"inner.2": spec(8)}), "forget", example=ROWS)


def test_constants_are_folded_in_double_precision():
    model = mlp(nn.Sigmoid()).double()
    router = gr.Router(model, {"0": spec(8)})
    with router.ablated("forget"):
        expected = output(model, ROWS.double())
    smaller = contract(router, "forget", example=ROWS.double()).model
    torch.testing.assert_close(output(smaller, ROWS.double()), expected, rtol=1e-14, atol=1e-14)


def test_dropout_that_is_on_in_evaluation_makes_no_constant():
    class Noisy(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Linear(5, 8), nn.Linear(8, 2)

        def forward(self, x):
            return self.last(nn.functional.dropout(self.first(x).sigmoid(), 0.5, training=True))

    with pytest.raises(SiteError, match="'last' reads the units, but not only by way of the site"):
        contract(gr.Router(Noisy(), {"first": spec(8)}), "forget", example=ROWS)


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
