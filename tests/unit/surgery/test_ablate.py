"""`ablate_` folds an ablation into the weights where that is exact; `ablated` blocks in training."""

import copy

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.nn.utils import prune

import gradroute as gr
from gradroute.errors import SiteError, SpecError, UsageError
from gradroute.surgery import ablate_, contract
from surgery_cases import CASES, IDS, IMAGES, ROWS, Shared, agree, channels, gpt2, mlp, normalized, output, resnet, spec


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


def pruned():
    model = mlp()
    prune.random_unstructured(model[0], "weight", 0.3)
    return model


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
            (lambda: nn.Sequential(nn.Embedding(9, 8, max_norm=1.0)), {"0": spec(8)}, "max_norm scales each unit by"),
            (pruned, {"0": spec(8)}, r"weight of this Linear is computed before each forward.*prune\.remove"),
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

    def test_the_statistics_of_a_norm_on_the_way_stay(self):
        model = mlp(nn.Sigmoid(), norm=True)
        before = copy.deepcopy(model[1].state_dict())
        ablate_(gr.Router(model, {"2": spec(8)}), "forget", example=ROWS)
        assert torch.equal(model[1].running_mean, before["running_mean"])
        assert torch.equal(model[1].running_var, before["running_var"])
        assert not model[4].weight[:, 6:].any(), "no row makes a sigmoid 0, so it is the columns"

    def test_a_weight_that_is_computed_is_no_place_for_zeros(self):
        with pytest.raises(SiteError, match="_weight_norm in .* is not known"):
            ablate_(gr.Router(normalized(), {"1": spec(8)}), "forget", example=ROWS)

    def test_changes_nothing_where_the_example_shows_another_result(self):
        model = mlp()
        runs = []
        model[0].register_forward_hook(lambda module, args, out: runs.append(1) or out + len(runs))
        before = copy.deepcopy(model.state_dict())
        with pytest.raises(SiteError, match="nothing was changed"):
            ablate_(gr.Router(model, {"0": spec(8)}), "forget", example=ROWS)
        assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())

    def test_code_of_others_between_the_weights_and_the_site_is_no_place_for_zeros_unseen(self):
        model = mlp()
        router = gr.Router(model, {"0": spec(8), "6": gr.Site(spec(8), on="input")})
        model[0].register_forward_hook(lambda module, args, out: out * 2)  # behind the site
        before = model[0].register_forward_hook(lambda module, args, out: out + 1, prepend=True)
        with pytest.raises(SiteError, match="site '0': another hook or forward method may edit its output"):
            ablate_(router, "forget")
        before.remove()
        behind = model[6].register_forward_pre_hook(lambda module, args: (args[0] + 1,))
        with pytest.raises(SiteError, match="site '6': another hook or forward method may edit its input"):
            ablate_(router, "forget")
        behind.remove()
        ablate_(router, "forget", example=ROWS)

    def test_changes_nothing_where_the_changed_model_cannot_run(self):
        runs = []

        def fail(module, args, out):
            runs.append(1)
            if len(runs) > 1:  # the first was before the change
                raise KeyboardInterrupt

        model = mlp()
        router = gr.Router(model, {"0": spec(8)})
        model[0].register_forward_hook(fail)
        before = copy.deepcopy(model.state_dict())
        with pytest.raises(KeyboardInterrupt):
            ablate_(router, "forget", example=ROWS)
        assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())

    def test_inside_of_a_block_it_is_refused(self):
        model = mlp()
        router = gr.Router(model, {"0": spec(8)})
        for block in (router(torch.tensor([0, 0, 1, 1])), router.ablated("retain")):
            with block, pytest.raises(UsageError, match="leave the block first"):
                ablate_(router, "forget")
            with block, pytest.raises(UsageError, match="leave the block first"):
                contract(router, "forget", example=ROWS)

    def test_what_the_model_returns_of_its_weights_is_compared_too(self):
        class Penalized(nn.Sequential):
            def forward(self, x):
                return super().forward(x), self[0].weight

        router = gr.Router(Penalized(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 2)), {"0": spec(8)})
        with pytest.raises(SiteError, match="are read by other code too.*nothing was changed"):
            ablate_(router, "forget", example=ROWS)

    def test_a_sharded_model_is_refused(self):
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
        try:
            router = gr.Router(fully_shard(mlp()), {"0": spec(8)})
            for operate in (ablate_, lambda *labels: contract(*labels, example=ROWS)):
                with pytest.raises(UsageError, match="do surgery before fully_shard"):
                    operate(router, "forget")
        finally:
            dist.destroy_process_group()

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
        assert abs(model[0].bias[50:].mean().item() - 2.0) < 0.1, "what an init of weights cannot fill"

    def test_a_reinit_that_fails_changes_nothing(self):
        model = mlp()
        before = copy.deepcopy(model.state_dict())
        with pytest.raises(ZeroDivisionError):
            ablate_(gr.Router(model, {"0": spec(8)}), "forget", reinit=lambda rows: 1 / 0)
        assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


READS = {
    "function": lambda self, x: nn.functional.linear(x, self.first.weight),
    "method": lambda self, x: x @ self.first.weight.t(),
    "rows": lambda self, x: x @ self.first.weight[6:].t(),
    "data": lambda self, x: x @ self.alias.t(),
    "silent on the example": lambda self, x: (x @ self.first.weight.t() - 1e6).relu(),
    "value": lambda self, x: x * float(self.first.bias[7]),
    "without gradients": lambda self, x: torch.no_grad()(nn.functional.linear)(x, self.first.weight),
    "wide": lambda self, x: torch.einsum("bi,oi->bo", x, self.first.weight),
}


class Elsewhere(nn.Module):
    """A model that reads the weights of a layer without calling it, in one of several ways."""

    def __init__(self, way):
        super().__init__()
        self.first, self.act, self.last, self.way = nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 2), way
        self.alias = self.first.weight.data

    def forward(self, x):
        return self.last(self.act(self.first(x))) + READS[self.way](self, x).sum()


class TestWeightsThatOtherCodeReads:
    @pytest.mark.parametrize("way", READS)
    def test_are_no_place_for_zeros(self, way):
        model = Elsewhere(way).eval()
        router = gr.Router(model, {"first": spec(8)})
        before = copy.deepcopy(model.state_dict())
        with pytest.raises(SiteError, match="site 'first': the weights of this Linear are read by other code"):
            ablate_(router, "forget", example=ROWS)
        with pytest.raises(SiteError, match=r"needs an example.*the model itself is a Elsewhere.*example=\.\.\."):
            ablate_(router, "forget")
        assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
        assert not any(hook.__self__.__class__.__name__ == "_Reads" for hook in model.first._forward_hooks.values())

    def test_sizes_and_dtypes_are_no_values(self):
        class Plain(Shared):
            def forward(self, x):
                return super().forward(x.to(self.first.weight.dtype)[:, : self.first.weight.shape[1]])

        model = Plain().eval()
        router = gr.Router(model, {"first": spec(8)})
        with router.ablated("forget"):
            expected = output(model, ROWS)
        ablate_(router, "forget", example=ROWS)
        agree(output(model, ROWS), expected)

    @pytest.mark.parametrize(
        ("change", "reason"),
        [
            (lambda m: m[4].register_forward_hook(lambda *_: None), "module '4' has hooks"),
            (
                lambda m: setattr(m[4], "forward", lambda x: x @ m[0].weight.t()),
                "module '4' has another forward method",
            ),
            (lambda m: m.append(nn.TransformerEncoderLayer(2, 1)), "'7' is a TransformerEncoderLayer, which may read"),
            (lambda m: m.append(Shared()), "'7' is a Shared, whose forward method may read any weight"),
        ],
    )
    def test_are_ruled_out_without_an_example_in_layers_of_torch_alone(self, change, reason):
        model = mlp()
        router = gr.Router(model, {"0": spec(8)})
        change(model)
        with pytest.raises(SiteError, match=f"ablate_ needs an example here.*{reason}"):
            ablate_(router, "forget")


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
