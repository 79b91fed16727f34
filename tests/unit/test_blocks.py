"""`block_sites`: the right layers in four families, and nothing learns in them but what the labels may teach."""

import pytest
import torch
import transformers
from torch import nn

import gradroute as gr
from gradroute.blocks import block_sites

HEADS = gr.RoutingSpec({"retain": [0, 1, 2], "forget": 3}, 4)
WIDTH = 8


def gpt2() -> nn.Module:
    config = transformers.GPT2Config(vocab_size=20, n_embd=WIDTH, n_layer=2, n_head=4, n_positions=16, n_inner=24)
    return transformers.GPT2LMHeadModel(config)


def gpt_neo() -> nn.Module:
    return transformers.GPTNeoForCausalLM(
        transformers.GPTNeoConfig(
            vocab_size=20,
            hidden_size=WIDTH,
            num_layers=2,
            attention_types=[[["global", "local"], 1]],
            num_heads=4,
            max_position_embeddings=16,
            intermediate_size=24,
        )
    )


def llama(kv: int = 4) -> nn.Module:
    return transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=20,
            hidden_size=WIDTH,
            intermediate_size=24,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=kv,
        )
    )


def vit() -> nn.Module:
    return transformers.ViTForImageClassification(
        transformers.ViTConfig(
            hidden_size=WIDTH,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=24,
            image_size=8,
            patch_size=4,
        )
    )


NEURONS = gr.RoutingSpec.split({"retain": 20, "forget": 4})
FAMILIES = {"GPT-2": gpt2, "GPT-Neo": gpt_neo, "Llama": llama, "Llama, grouped heads": lambda: llama(2), "ViT": vit}


def inputs(model: nn.Module) -> dict[str, torch.Tensor]:
    if hasattr(model.config, "vocab_size"):
        return {"input_ids": torch.arange(12).view(3, 4)}
    return {"pixel_values": torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))}


@pytest.fixture(params=FAMILIES.values(), ids=FAMILIES)
def model(request: pytest.FixtureRequest) -> nn.Module:
    torch.manual_seed(0)
    return request.param().eval()


def gradients(model: nn.Module) -> dict[str, torch.Tensor]:
    model.zero_grad()
    model(**inputs(model)).logits.square().sum().backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


def test_labels_teach_their_own_neurons_and_heads_and_all_else_as_before(model: nn.Module) -> None:
    whole = gradients(model)
    plain = model(**inputs(model)).logits
    router = gr.Router(model, block_sites(model, mlp=NEURONS, heads=HEADS))
    with router(torch.tensor([1, 1, 1])):  # all forget
        assert torch.equal(model(**inputs(model)).logits, plain)
        forget = gradients(model)
    with router(torch.tensor([0, 0, 0])):
        retain = gradients(model)
    routed = {f"{name}.weight" for name in router.sites} | {f"{name}.bias" for name in router.sites}
    for name, gradient in whole.items():
        if name not in routed:
            torch.testing.assert_close(forget[name], gradient, msg=name)
        elif "kv" not in name:
            both = (forget[name] != 0) & (retain[name] != 0)
            if not _shared(name, router):
                torch.testing.assert_close(forget[name] + retain[name], gradient, msg=name)
                assert not both.any(), name


def _shared(name: str, router: gr.Router) -> bool:
    """Biases of what reads, and key and value heads that several query heads use."""
    layer, _, parameter = name.rpartition(".")
    (site,) = router.sites[layer]
    reads = parameter == "bias" and site.on == "input"
    return reads or (site.spec.width < WIDTH and site.spec.width != NEURONS.width)


@pytest.mark.filterwarnings(r"ignore:`gradient_checkpointing.*` is deprecated:FutureWarning")
def test_blocks_that_are_checkpointed_learn_as_others_do(model: nn.Module) -> None:
    """As under a trainer: labels are an argument, and backward comes when the block of labels is over."""
    labels = torch.tensor([0, 1, gr.UNLABELED])
    routed = gr.RoutedModule(model.train(), block_sites(model, mlp=NEURONS, heads=HEADS))
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    found, calls = [], []
    model.get_submodule(next(iter(routed.router.sites))).register_forward_hook(lambda *_: calls.append(len(found)))
    for checkpointed in (False, True):
        if checkpointed:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        model.zero_grad()
        routed(**inputs(model), route_labels=labels).logits.square().sum().backward()
        found.append({name: parameter.grad.clone() for name, parameter in model.named_parameters()})
    assert calls == [0, 1, 1], "the second time it is run again"
    torch.testing.assert_close(found[1], found[0])


def test_every_block_has_its_sites(model: nn.Module) -> None:
    sites = block_sites(model, mlp=NEURONS, heads=HEADS)
    linear = [
        name
        for name, module in model.named_modules()
        if type(module).__name__ in ("Linear", "Conv1D") and ".1." in name
    ]
    assert {name for name in sites if ".1." in name} == set(linear)
    readers = {name for name, site in sites.items() if site.on == "input"}
    assert len(readers) == 4  # two in each block
    assert all(any(part in name for part in ("c_proj", "out_proj", "o_proj", "down_proj", "fc2")) for name in readers)


def test_grouped_heads_are_taught_by_whoever_teaches_one_of_them() -> None:
    sites = block_sites(llama(2), heads=HEADS)
    (keys,) = (site.spec for name, site in sites.items() if "layers.0" in name and "k_proj" in name)
    assert keys.table[:2].tolist() == [[1, 1, 1, 1], [0, 0, 1, 1]]


def gpt_neox() -> nn.Module:
    return transformers.GPTNeoXForCausalLM(
        transformers.GPTNeoXConfig(
            vocab_size=20, hidden_size=WIDTH, num_hidden_layers=1, num_attention_heads=4, intermediate_size=24
        )
    )


def mpt() -> nn.Module:
    return transformers.MptForCausalLM(
        transformers.MptConfig(vocab_size=20, d_model=WIDTH, n_layers=1, n_heads=4, max_seq_len=16)
    )


@pytest.mark.parametrize(("make", "fused"), [(gpt_neox, "heads"), (mpt, "projections")])
def test_one_layer_for_queries_keys_and_values_is_routed_in_the_order_that_is_said(make, fused) -> None:
    """Nothing learns from "retain" but what would learn without head 3, whose output nobody reads then."""
    torch.manual_seed(0)
    model = make().eval()
    *_, projection, out = block_sites(model, heads=HEADS, fused=fused)
    weight, reads = model.get_submodule(projection).weight, model.get_submodule(out).weight
    with gr.Router(model, block_sites(model, heads=HEADS, fused=fused))(torch.zeros(3, dtype=torch.int64)):
        routed = gradients(model)[f"{projection}.weight"]
    with torch.no_grad():
        reads[:, -WIDTH // 4 :] = 0
    unread = gradients(model)[f"{projection}.weight"]
    assert weight.shape[0] == 3 * WIDTH
    assert torch.equal(routed.any(1), unread.any(1))
    assert (~routed.any(1)).sum() == 3 * WIDTH // 4


@pytest.mark.parametrize(
    ("blocks", "expected"),
    [
        (1, [1]),
        (-1, [3]),
        ([2, 0], [0, 2]),
        ([1, -3, 1], [1]),
        (range(-2, 0), [2, 3]),
        (slice(1, None, 2), [1, 3]),
        ((n for n in (0, 3)), [0, 3]),
        (None, [0, 1, 2, 3]),
    ],
)
def test_only_the_blocks_that_were_asked_for_have_sites(blocks, expected) -> None:
    model = transformers.GPT2Model(transformers.GPT2Config(vocab_size=20, n_embd=8, n_layer=4, n_head=4, n_inner=24))
    every = block_sites(model, mlp=NEURONS, heads=HEADS)
    sites = block_sites(model, mlp=NEURONS, heads=HEADS, blocks=blocks)
    assert list(sites.items()) == [
        (name, site) for name, site in every.items() if name.startswith(tuple(f"h.{number}." for number in expected))
    ]
    assert len(sites) == 4 * len(expected)


def test_blocks_are_counted_where_some_are_built_in_another_way_too() -> None:
    model = gpt2()
    model.transformer.h[0].mlp.c_fc = nn.Identity()
    assert len(block_sites(model, heads=HEADS)) == 2
    assert set(block_sites(model, heads=HEADS, blocks=1)) == set(block_sites(model, heads=HEADS))
    with pytest.raises(gr.errors.SiteError, match=r"block 0 cannot be routed as the others: transformer\.h\.0 has 3"):
        block_sites(model, heads=HEADS, blocks=[0, 1])


class TestMisuse:
    @pytest.mark.parametrize(
        ("blocks", "message"),
        [
            (2, "there is no block 2: the model has 2, numbered 0 to 1, or -2 to -1"),
            ([0, -3], "there is no block -3: the model has 2"),
            ([], r"blocks=\[\] names none of the 2 blocks"),
            (slice(5, 9), "names none of the 2 blocks"),
            ([0.5], r"blocks must be integers; got 0\.5"),
            ([True], "blocks must be integers; got True"),
        ],
    )
    def test_blocks_that_do_not_exist(self, blocks, message) -> None:
        with pytest.raises(gr.errors.SiteError, match=message):
            block_sites(gpt2(), mlp=NEURONS, blocks=blocks)

    def test_an_order_that_no_shape_tells(self) -> None:
        with pytest.raises(gr.errors.SiteError, match='say fused="projections".* or fused="heads".*got fused=None'):
            block_sites(gpt_neox(), heads=HEADS)

    def test_no_spec(self) -> None:
        with pytest.raises(gr.errors.SiteError, match="needs a spec"):
            block_sites(gpt2())

    def test_no_transformer(self) -> None:
        with pytest.raises(gr.errors.SiteError, match="no transformer block was found in Sequential"):
            block_sites(nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3)), mlp=NEURONS)

    def test_multihead_attention_says_why(self) -> None:
        encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 4), 2, enable_nested_tensor=False)
        with pytest.raises(gr.errors.SiteError, match="weights without a module"):
            block_sites(encoder, heads=HEADS)

    def test_widths(self) -> None:
        with pytest.raises(gr.errors.SpecError, match="24 MLP neurons"):
            block_sites(gpt2(), mlp=gr.RoutingSpec.one_per_label(5))
        with pytest.raises(gr.errors.SpecError, match="the spec's width must be the number of heads"):
            block_sites(gpt2(), heads=gr.RoutingSpec.one_per_label(3))

    def test_soft_weights_on_grouped_heads(self) -> None:
        soft = gr.RoutingSpec({"retain": gr.Route([0, 1, 2], weight=0.5), "forget": 3}, 4)
        with pytest.raises(gr.errors.SpecError, match="weights 1 and 0 only"):
            block_sites(llama(2), heads=soft)


@pytest.mark.parametrize("build", [gpt2, llama, lambda: llama(kv=2)], ids=["gpt2", "llama", "llama, grouped"])
def test_silent_heads_and_neurons_are_what_their_readers_do_not_see(build):
    """A silent head or neuron: the block computes what it does where the columns that read it are 0."""
    torch.manual_seed(0)
    model = build().eval()
    heads = gr.RoutingSpec({"retain": [0, 1, 2], "forget": 3}, 4, silent={"retain": "forget"})
    neurons = gr.RoutingSpec.split({"retain": 20, "forget": 4}, silent={"retain": "forget"})
    tokens = torch.randint(0, 20, (2, 5))
    with torch.no_grad():
        whole = model(tokens, use_cache=False).logits
    sites = block_sites(model, heads=heads, mlp=neurons)
    loud = [name for name, site in sites.items() if not site.spec.has_silent]
    assert all(name.endswith(("k_proj", "v_proj")) for name in loud), "which several heads may share"
    assert bool(loud) == (getattr(model.config, "num_key_value_heads", 4) < 4)
    router = gr.Router(model, sites)
    with torch.no_grad(), router(heads.encode(["retain", "forget"])):
        found = model(tokens, use_cache=False).logits
    router.remove()
    with torch.no_grad():
        for name, site in sites.items():
            if site.on == "input":
                layer = model.get_submodule(name)
                weight = layer.weight if isinstance(layer, nn.Linear) else layer.weight.t()
                weight[:, list(site.spec.indices("forget"))] = 0
        off = model(tokens, use_cache=False).logits
    torch.testing.assert_close(found, torch.stack([off[0], whole[1]]))
    assert not torch.allclose(whole[0], off[0], atol=1e-3)
