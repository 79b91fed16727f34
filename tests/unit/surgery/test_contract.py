"""`contract`: a smaller model computes what the ablated one does, or the reason why it cannot."""

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
    agree,
    gpt2,
    output,
    resnet,
    spec,
)


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


def test_a_forward_that_computes_with_fixed_sizes_is_refused():
    class Fixed(Attention):
        def forward(self, x):
            q, k, v = (layer(x).view(*x.shape[:2], 3, 4).transpose(1, 2) for layer in (self.q, self.k, self.v))
            return self.out(nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))

    _, sites, x = CASES["attention by hand"]
    with pytest.raises(SiteError, match=r"cannot run: its forward code computes with sizes.*ablate_"):
        contract(gr.Router(Fixed(), sites), "forget", example=x)


class Averaged(nn.Module):
    """A model that uses the number of units as a value."""

    def __init__(self):
        super().__init__()
        self.first, self.act, self.last = nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 2)

    def forward(self, x):
        h = self.act(self.first(x))
        return self.last(h / h.shape[-1])


@pytest.mark.parametrize("site", ["act", "first", "last"])
def test_an_example_on_which_the_units_are_silent_is_refused(site):
    model = Averaged()
    with torch.no_grad():
        model.first.weight.copy_(torch.eye(8, 5))
        model.first.bias.zero_()
        model.last.weight.fill_(1.0)
    router = gr.Router(model, {site: gr.Site(spec(8), on="input" if site == "last" else "output")})
    with pytest.raises(SiteError, match=f"site '{site}': on this example .* the same whether the units of this"):
        contract(router, "forget", example=-torch.ones(2, 5))
    with pytest.raises(SiteError, match="would not compute what the ablated one does"):
        contract(router, "forget", example=torch.ones(2, 5))


def test_what_is_returned_fits_a_screen_and_cannot_be_changed():
    contracted = contract(gr.Router(gpt2(), CASES["gpt2, both"][1]), "forget", example=IDS)
    assert len(repr(contracted)) < 400
    assert f"and of {len(contracted.kept) - 4} more" in repr(contracted.kept)
    assert dict(contracted.kept).keys() == set(contracted.kept)
    with pytest.raises(TypeError):
        contracted.kept["transformer.h.1.mlp.c_fc.weight"][0] = ()


@pytest.mark.parametrize("label", ["forget", gr.UNTAUGHT])
def test_of_a_spec_with_silent_units_a_model_is_cut_as_of_any_other(label):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 2)).eval()
    quiet = gr.RoutingSpec({"retain": [0, 1, 2], "forget": [3, 4]}, 8, shared=5, silent={"retain": "forget"})
    router = gr.Router(model, {"0": quiet})
    x = torch.randn(6, 5)
    with router.ablated(label):
        expected = output(model, x)
    smaller = contract(router, label, example=x).model
    agree(output(smaller, x), expected)
    assert len(smaller[0].weight) == 6
    ablate_(router, label, example=x)
    agree(output(model, x), expected)
    if label == "forget":
        with router(torch.zeros(6, dtype=torch.long)):
            agree(output(model, x), expected)
