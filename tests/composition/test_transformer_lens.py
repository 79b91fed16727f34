"""TransformerLens: a bridge around tiny models that are made on the spot, its hook points and its layers as sites."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from transformer_lens import HookedRootModule, TransformerBridge, TransformerBridgeConfig
from transformer_lens.hook_points import HookPoint
from transformer_lens.model_bridge.sources import build_bridge_from_module
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

import gradroute as gr
from composition.forms import Expected, assert_same, oracle_route
from gradroute.blocks import block_sites
from gradroute.errors import SiteError
from gradroute.surgery import ablate_, contract
from gradroute.testing._oracle import closed_entries

WIDTH, HEADS, NEURONS, LAYERS, VOCABULARY, LENGTH = 16, 4, 24, 2, 11, 6
TOKENS = torch.randint(VOCABULARY, (4, LENGTH), generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 1, 1, gr.UNLABELED])
FORMS = pytest.mark.parametrize("form", ["router", "routed_module"])


def spec_of(width: int) -> gr.RoutingSpec:
    return gr.RoutingSpec(
        {"retain": slice(0, width - 3), "forget": slice(width - 3, width - 1)}, width, shared=width - 1
    )


OF_NEURONS = spec_of(NEURONS)
OF_HEADS = gr.RoutingSpec({"retain": [0, 1], "forget": 2}, HEADS, shared=3)


def tiny_gpt2() -> GPT2LMHeadModel:
    torch.manual_seed(0)
    sizes = {"n_embd": WIDTH, "n_layer": LAYERS, "n_head": HEADS, "n_inner": NEURONS, "vocab_size": VOCABULARY}
    off = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0, "bos_token_id": 0, "eos_token_id": 0}
    return GPT2LMHeadModel(GPT2Config(n_positions=LENGTH, attn_implementation="eager", **sizes, **off))


def tiny_llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=WIDTH,
        intermediate_size=NEURONS,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS // 2,
        vocab_size=VOCABULARY,
        max_position_embeddings=LENGTH,
        attn_implementation="eager",
    )
    return LlamaForCausalLM(config)


def bridged(model: nn.Module) -> TransformerBridge:
    return build_bridge_from_module(model, type(model).__name__, hf_config=model.config)


def native() -> TransformerBridge:
    return TransformerBridge.boot_native(
        TransformerBridgeConfig(
            d_model=WIDTH,
            d_head=WIDTH // HEADS,
            n_heads=HEADS,
            d_mlp=NEURONS,
            n_layers=LAYERS,
            n_ctx=LENGTH,
            d_vocab=VOCABULARY,
            act_fn="relu",
            seed=0,
        )
    )


BRIDGES = {"GPT-2": lambda: bridged(tiny_gpt2()), "Llama": lambda: bridged(tiny_llama()), "native": native}
HOOKS = {
    "blocks.*.mlp.hook_post": OF_NEURONS,
    "blocks.*.attn.hook_z": OF_HEADS.repeat(WIDTH // HEADS),
    "blocks.1.hook_resid_pre": spec_of(WIDTH),
}


def parameters_of(bridge: nn.Module) -> dict[str, nn.Parameter]:
    """By torch's own names: the bridge gives others."""
    return dict(nn.Module.named_parameters(bridge))


def gradients(bridge: nn.Module) -> dict[str, Tensor | None]:
    return {name: parameter.grad for name, parameter in parameters_of(bridge).items()}


def loss_of(model: Callable[..., Tensor], **labels: Tensor) -> Tensor:
    return model(TOKENS, **labels).square().sum()


def oracle_gradients(bridge: TransformerBridge, pattern: str, spec: gr.RoutingSpec) -> Expected:
    for name, point in bridge.hook_dict.items():
        if fnmatch.fnmatchcase(name, pattern):
            point.register_forward_hook(lambda _, __, z: oracle_route(z, LABELS, spec))
    loss = loss_of(bridge)
    loss.backward(retain_graph=True)
    # The oracle names parameters as the module does.
    holder = nn.Module()
    for name, parameter in parameters_of(bridge).items():
        holder.register_parameter(name.replace(".", "/"), parameter)
    closed = {name.replace("/", "."): entries for name, entries in closed_entries(loss, holder).items()}
    return Expected(gradients(bridge), closed)


@FORMS
@pytest.mark.parametrize("make", BRIDGES.values(), ids=BRIDGES)
@pytest.mark.parametrize("pattern", HOOKS)
@pytest.mark.supports("TransformerLens bridge: hook points as sites")
def test_hook_points_are_sites(form: str, make, pattern: str) -> None:
    bridge, sites = make(), {pattern: HOOKS[pattern]}
    if form == "routed_module":
        loss_of(gr.RoutedModule(bridge, sites), route_labels=LABELS).backward()
    else:
        with gr.Router(bridge, sites)(LABELS):
            loss_of(bridge).backward()
    assert_same(gradients(bridge), oracle_gradients(make(), pattern, HOOKS[pattern]))


@pytest.mark.parametrize("family", BRIDGES)
@pytest.mark.parametrize("router_first", [True, False])
@pytest.mark.supports("TransformerLens bridge: `enable_compatibility_mode`", forms=["router"])
def test_compatibility_mode_may_come_before_or_after_the_router(family: str, router_first: bool) -> None:
    pattern = "blocks.*.mlp.hook_post"
    bridge, twin = BRIDGES[family](), BRIDGES[family]()
    twin.enable_compatibility_mode()
    if not router_first:
        bridge.enable_compatibility_mode()
    router = gr.Router(bridge, {pattern: OF_NEURONS})
    if router_first:
        bridge.enable_compatibility_mode()
    with router(LABELS):
        loss_of(bridge).backward()
    assert_same(gradients(bridge), oracle_gradients(twin, pattern, OF_NEURONS))


@pytest.mark.parametrize("make", BRIDGES.values(), ids=BRIDGES)
@pytest.mark.supports(
    "TransformerLens bridge: `reset_hooks`, `run_with_hooks` and `run_with_cache` beside a router", forms=["router"]
)
def test_its_hooks_and_those_of_a_router_leave_each_other_alone(make) -> None:
    pattern = "blocks.*.mlp.hook_post"
    bridge = make()
    plain = loss_of(bridge).item()
    router = gr.Router(bridge, {pattern: OF_NEURONS})
    bridge.add_hook("blocks.0.mlp.hook_post", lambda z, hook: z * 2)
    bridge.reset_hooks(including_permanent=True)
    with router(LABELS):
        _, cache = bridge.run_with_cache(TOKENS)
        seen = []
        bridge.run_with_hooks(TOKENS, fwd_hooks=[("blocks.0.mlp.hook_post", lambda z, hook: seen.append(z.detach()))])
        loss = loss_of(bridge)
        loss.backward()
    assert loss.item() == plain
    assert torch.equal(seen[0], cache["blocks.0.mlp.hook_post"])
    assert_same(gradients(bridge), oracle_gradients(make(), pattern, OF_NEURONS))
    with torch.no_grad(), router.ablated("forget"):
        _, cache = bridge.run_with_cache(TOKENS)
    off = cache["blocks.0.mlp.hook_post"].eq(0).flatten(0, -2).all(0).nonzero().flatten()
    assert off.tolist() == list(OF_NEURONS.indices("forget"))
    bridge.add_hook("blocks.0.mlp.hook_post", lambda z, hook: z * 0)
    router.remove()
    assert loss_of(bridge).item() != plain, "the bridge's own hook is still there"


@pytest.mark.supports("TransformerLens: hook points of a `HookedRootModule`", forms=["router"])
def test_the_hook_points_of_a_model_of_ones_own_go_by_their_names_and_survive_reset_hooks() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.down = nn.Linear(WIDTH, NEURONS), nn.Linear(NEURONS, WIDTH)
            self.hook_post = HookPoint()

        def forward(self, x: Tensor) -> Tensor:
            return x + self.down(self.hook_post(self.up(x).relu()))

    class Hooked(HookedRootModule):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.Sequential(Block(), Block())
            self.setup()

        def forward(self, x: Tensor) -> Tensor:
            return self.blocks(x)

    model = Hooked()
    router = gr.Router(model, {"blocks.*.hook_post": OF_NEURONS})
    model.reset_hooks(including_permanent=True)
    with router(torch.tensor([0, 0])):  # nothing of "forget"
        model(torch.randn(2, WIDTH)).square().sum().backward()
    for block in model.blocks:
        taught = block.up.bias.grad != 0
        assert not taught[list(OF_NEURONS.indices("forget"))].any()
        assert taught.any()


@pytest.mark.supports('TransformerLens bridge: `block_sites`, level="parameters"', forms=["router"])
def test_block_sites_of_a_bridge_teach_what_those_of_the_plain_model_teach() -> None:
    plain = tiny_llama()
    with gr.Router(plain, block_sites(plain, mlp=OF_NEURONS, heads=OF_HEADS))(LABELS):
        loss_of(lambda tokens: plain(tokens).logits).backward()
    bridge = bridged(tiny_llama())
    with gr.Router(bridge, block_sites(bridge, mlp=OF_NEURONS, heads=OF_HEADS))(LABELS):
        loss_of(bridge).backward()
    found = {name.replace("._original_component", ""): parameter.grad for name, parameter in bridge.named_parameters()}
    torch.testing.assert_close(found, {name: parameter.grad for name, parameter in plain.named_parameters()})


@pytest.mark.refuses(
    "TransformerLens bridge: `block_sites` of GPT-2", "its queries, keys and values are there twice", forms=["router"]
)
def test_block_sites_of_a_bridge_that_splits_a_fused_projection_are_refused() -> None:
    with pytest.raises(
        SiteError, match="no transformer block was found in TransformerBridge.*'blocks.0 has linear layers"
    ):
        block_sites(bridged(tiny_gpt2()), heads=OF_HEADS)


def test_a_hook_point_that_a_bridge_does_not_call_warns() -> None:
    bridge = bridged(tiny_gpt2())
    router = gr.Router(bridge, {"blocks.*.attn.hook_result": spec_of(WIDTH)})
    with pytest.warns(gr.UnroutedWarning, match="were never called"), router(LABELS):
        loss_of(bridge).backward()


@pytest.mark.parametrize("family", ["Llama", "native"])
@pytest.mark.supports("TransformerLens bridge: `surgery.ablate_` at `block_sites`", forms=["router"])
def test_ablate_folds_heads_and_neurons_into_the_weights_of_a_bridge(family: str) -> None:
    bridge = BRIDGES[family]().eval()
    router = gr.Router(bridge, block_sites(bridge, mlp=OF_NEURONS, heads=OF_HEADS))
    with torch.no_grad():
        with router.ablated("forget"):
            expected = bridge(TOKENS)
        before = bridge(TOKENS)
        ablate_(router, "forget", example=TOKENS)
        torch.testing.assert_close(bridge(TOKENS), expected)
    assert not torch.allclose(before, expected)


@pytest.mark.parametrize("rewrite", [ablate_, contract])
@pytest.mark.refuses(
    "TransformerLens bridge: `surgery` at hook points", "torch cannot export a bridge", forms=["router"]
)
def test_surgery_that_needs_the_graph_of_a_bridge_is_refused(rewrite) -> None:
    bridge = native().eval()
    router = gr.Router(bridge, {"blocks.*.mlp.hook_post": OF_NEURONS})
    before = {name: parameter.clone() for name, parameter in parameters_of(bridge).items()}
    with pytest.raises(SiteError, match=r"TransformerBridge cannot be exported.*Put sites on the layers"):
        rewrite(router, "forget", example=TOKENS)
    assert all(torch.equal(parameter, before[name]) for name, parameter in parameters_of(bridge).items())


@pytest.mark.refuses("TransformerLens bridge: `surgery.contract`", "torch cannot export a bridge", forms=["router"])
def test_contract_is_refused_at_the_layers_of_a_bridge_too() -> None:
    bridge = bridged(tiny_llama()).eval()
    router = gr.Router(bridge, block_sites(bridge, mlp=OF_NEURONS, heads=OF_HEADS))
    with pytest.raises(SiteError, match="TransformerBridge cannot be exported"):
        contract(router, "forget", example=TOKENS)


def test_a_hook_point_that_a_bridge_computes_beside_the_loss_warns() -> None:
    bridge = bridged(
        tiny_llama()
    )  # whose norms are those of transformers, so that what is in between is computed again
    router = gr.Router(bridge, {"blocks.*.ln1.hook_normalized": spec_of(WIDTH)})
    with pytest.warns(gr.UnroutedWarning, match="ran without gradients"), router(LABELS):
        loss_of(bridge).backward()


def test_hook_resid_mid_of_a_bridge_is_beside_the_stream_and_not_on_it() -> None:
    taught = {}
    for pattern in ("blocks.1.hook_resid_mid", "blocks.1.hook_attn_out"):
        bridge = bridged(tiny_llama())
        with gr.Router(bridge, {pattern: spec_of(WIDTH)})(torch.zeros(4, dtype=torch.long)):  # nothing of "forget"
            loss_of(bridge).backward()
        (writer,) = (
            p for name, p in parameters_of(bridge).items() if name.startswith("blocks.1.") and ".o_proj." in name
        )
        taught[pattern] = writer.grad[list(spec_of(WIDTH).indices("forget"))].any().item()
    assert taught == {"blocks.1.hook_resid_mid": True, "blocks.1.hook_attn_out": False}
