"""Whole modules: taken out, or made of zeros, the model computes what it does while they are switched off."""

import copy

import pytest
import torch
from torch import nn

import gradroute as gr
from gradroute.errors import SiteError
from gradroute.surgery import Absent, ablate_, contract
from surgery_cases import (
    CELLS,
    IDS,
    IMAGES,
    ONE,
    ROWS,
    TOKENS,
    WHOLE_CASES,
    Branches,
    Mixture,
    Paired,
    Residual,
    agree,
    expert,
    gpt2,
    output,
    spec,
    whole,
)


@pytest.mark.parametrize("case", WHOLE_CASES)
def test_taken_out_nothing_is_left_and_the_rest_computes_what_it_did_without(case):
    build, sites, x, modules = WHOLE_CASES[case]
    model = build().eval()
    before = copy.deepcopy(model.state_dict())
    router = gr.Router(model, sites)
    with router.ablated("forget"):
        expected, part = output(model, x), output(model, x[:1])
    assert not torch.allclose(expected, output(model, x), atol=1e-4), "the module matters"
    contracted = contract(router, "forget", example=x)
    smaller = contracted.model
    agree(output(smaller, x), expected)
    agree(output(smaller, x[:1]), part)
    inside = {name for name in before if name.startswith(tuple(f"{module}." for module in modules))}
    assert set(contracted.gone) == inside
    assert set(smaller.state_dict()) == set(before) - inside
    assert not set(contracted.kept) & inside
    assert any(isinstance(module, Absent) for module in smaller.modules())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in smaller.modules())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    loss = smaller.train()(x)
    getattr(loss, "logits", loss).sum().backward()


@pytest.mark.parametrize("case", WHOLE_CASES)
def test_made_of_zeros_the_model_keeps_its_keys_and_computes_what_it_did_without(case):
    build, sites, x, modules = WHOLE_CASES[case]
    model = build().eval()
    before = copy.deepcopy(model.state_dict())
    router = gr.Router(model, sites)
    with router.ablated("forget"):
        expected, part = output(model, x), output(model, x[:1])
    ablate_(router, "forget", example=x)
    agree(output(model, x), expected)
    agree(output(model, x[:1]), part)
    assert model.state_dict().keys() == before.keys()
    buffers = dict(model.named_buffers())
    for name, tensor in model.state_dict().items():
        if name.startswith(tuple(f"{module}." for module in modules)) and name not in buffers:
            assert not tensor.any()
        elif not any(isinstance(site, gr.RoutingSpec) for site in sites.values()):  # and no units elsewhere
            assert torch.equal(tensor, before[name])


def test_a_gate_goes_on_choosing_an_expert_that_is_gone():
    model = Mixture().eval()
    router = gr.Router(model, {"experts.1": whole()})
    smaller = contract(router, "forget", example=TOKENS).model
    assert torch.equal(smaller.gate.weight, model.gate.weight)
    with torch.no_grad():
        model.gate.bias.copy_(torch.tensor([0.0, 1e4, 0.0]))  # all tokens are sent to it
        smaller.gate.bias.copy_(model.gate.bias)
    with router.ablated("forget"):
        expected = output(model, TOKENS)
    agree(output(smaller, TOKENS), expected)
    assert not expected.any(), "nobody else stands in for it"


def test_an_optimizer_forgets_the_parameters_and_goes_on_with_the_others():
    model = Mixture()
    router = gr.Router(model, {"experts.1": whole()})
    groups = [{"params": list(model.gate.named_parameters())}, {"params": list(model.experts.named_parameters())}]
    optimizer = torch.optim.AdamW(groups, lr=0.1)
    model(TOKENS).square().sum().backward()
    optimizer.step()
    contracted = contract(router, "forget", example=TOKENS, optimizer=optimizer)
    smaller, carried = contracted.model, contracted.optimizer
    assert {id(p) for group in carried.param_groups for p in group["params"]} == set(map(id, smaller.parameters()))
    assert set(carried.state) == set(smaller.parameters())
    assert [len(group["param_names"]) for group in carried.param_groups] == [2, 8]
    assert len(optimizer.param_groups[1]["params"]) == 12, "the original is as it was"
    with router.ablated("forget"):
        optimizer.zero_grad()
        model(TOKENS).square().sum().backward()
    carried.zero_grad()
    smaller(TOKENS).square().sum().backward()
    optimizer.step()
    carried.step()
    for name, parameter in smaller.named_parameters():
        torch.testing.assert_close(parameter, model.get_parameter(name), rtol=1e-5, atol=1e-6)


def test_a_module_of_two_names_and_one_in_another_go_once():
    model = Residual(expert())
    model.again = model.add
    router = gr.Router(model, {"add": whole(), "add.0": whole()})
    contracted = contract(router, "forget", example=TOKENS)
    assert isinstance(contracted.model.again, Absent)
    assert contracted.model.again is contracted.model.add
    assert not any(name.startswith(("add.", "again.")) for name in contracted.model.state_dict())


def test_weights_that_others_share_stay_with_them():
    model = Mixture().eval()
    model.experts[1][0].weight = model.experts[0][0].weight
    router = gr.Router(model, {"experts.1": whole()})
    with router.ablated("forget"):
        expected = output(model, TOKENS)
    contracted = contract(router, "forget", example=TOKENS)
    agree(output(contracted.model, TOKENS), expected)
    assert torch.equal(contracted.model.experts[0][0].weight, model.experts[0][0].weight)
    with pytest.raises(SiteError, match=r"tied: 'experts\.0\.0\.weight' and 'experts\.1\.0\.weight' are one tensor"):
        ablate_(router, "forget", example=TOKENS)


def test_attention_that_keeps_a_cache_is_made_of_zeros_and_not_taken_out():
    """Without its entries in the cache, another layer would count the positions, and generate something else."""
    model = gpt2()
    router = gr.Router(model, {"transformer.h.0.attn": whole(index=0)})
    with pytest.raises(SiteError, match=r"'transformer\.h\.0\.attn': this GPT2Attention .* given a DynamicCache"):
        contract(router, "forget", example=IDS)
    with router.ablated("forget"):
        expected = output(model, IDS)
    ablate_(router, "forget", example=IDS)
    agree(output(model, IDS), expected)
    assert not any(parameter.any() for parameter in model.transformer.h[0].attn.parameters())
    assert model.config.use_cache


def test_several_tensors_that_a_module_returns_go_together():
    model = Paired().eval()
    both = [whole(index="a"), whole(index=("rest", 0))]
    router = gr.Router(model, {"pair": both})
    with router.ablated("forget"):
        expected = output(model, CELLS)
    agree(output(contract(router, "forget", example=CELLS).model, CELLS), expected)
    one = gr.Router(Paired(), {"pair": both[0]})
    with pytest.raises(SiteError, match="'pair': this Pair .* returns other tensors too, which go on being needed"):
        contract(one, "forget", example=CELLS)


class Reaching(Residual):
    """A model whose code reads what is inside of the module."""

    def forward(self, x):
        return super().forward(x * self.add[0].in_features)


class Noisy(nn.Linear):
    """A module that others' random numbers depend on."""

    def forward(self, x):
        return super().forward(x) + torch.rand(())


class Halved(nn.Module):
    """A model with a strided convolution, of which zeros of another image would have another size."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 2, stride=2), nn.Conv2d(3, 4, 2, stride=2)

    def forward(self, x):
        return self.a(x) + self.b(x)


@pytest.mark.parametrize(
    ("build", "sites", "x", "reason"),
    [
        (expert, {"": whole()}, CELLS, "site '': this Sequential .* it is the model itself. Give the router the model"),
        (
            lambda: Residual(expert()),
            {"add": whole(on="input")},
            TOKENS,
            "'add': this Sequential .* what it makes of an input of 0 goes on being needed. Put the site on its output",
        ),
        (
            lambda: Residual(nn.ReLU()),
            {"add": gr.Site(ONE, dim=None)},
            TOKENS,
            "'add': this ReLU .* has neither parameters nor buffers, so that nothing would be smaller",
        ),
        (Halved, {"a": whole(dim=1)}, IMAGES, r"it makes a tensor of shape \(2, 4, 8, 8\) of \(2, 3, 16, 16\)"),
        (Branches, {"first": whole()}, IMAGES, r"Where one dimension alone is not its argument's, .*dim=\.\.\."),
        (lambda: Reaching(expert()), {"add": whole()}, TOKENS, r"or reaches into 'add', which is gone \(.*ablate_"),
        (
            lambda: nn.Sequential(Residual(Noisy(6, 6)), nn.Dropout(0.5), Noisy(2, 2)),
            {"0.add": whole()},
            TOKENS,
            "would not compute what the ablated one does on this example",
        ),
    ],
)
def test_what_cannot_be_taken_out_is_refused_with_the_reason(build, sites, x, reason):
    model = build().eval()
    with pytest.raises(SiteError, match=reason):
        contract(gr.Router(model, sites), "forget", example=x)


def test_an_expert_that_nobody_chose_is_asked_for_an_example():
    model = Mixture().eval()
    with torch.no_grad():
        model.gate.bias.copy_(torch.tensor([0.0, -1e4, 0.0]))
    router = gr.Router(model, {"experts.1": whole()})
    with pytest.raises(SiteError, match=r"'experts\.1': this Sequential .* did not run on this example. Give one that"):
        contract(router, "forget", example=TOKENS)
    with pytest.raises(SiteError, match="site 'experts.1'.*not known to make 0"):
        ablate_(router, "forget", example=TOKENS)


def test_units_that_only_a_silent_module_reads_besides_are_free_to_go():
    """What leads into a module that is taken out is needed no more."""

    class Normed(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.act, self.last = nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 2)
            self.beside = nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 2))

        def forward(self, x):
            h = self.act(self.first(x))
            return self.last(h) + self.beside(h)

    model = Normed().eval()
    sites = {"act": spec(8), "beside": whole()}
    with pytest.raises(SiteError, match="mixes the units"):
        contract(gr.Router(model, {"act": spec(8)}), "forget", example=ROWS)
    router = gr.Router(model, sites)
    with router.ablated("forget"):
        expected = output(model, ROWS)
    contracted = contract(router, "forget", example=ROWS)
    agree(output(contracted.model, ROWS), expected)
    assert contracted.model.last.in_features == 6
    assert "gone=<'beside.0.weight'" in repr(contracted)
