"""docs/moving.md, "From masklib": row by row."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import gradroute as gr
from gradroute.surgery import add_units_, contract

from .comparing import assert_same
from .hook_points import HEADS, LAYERS, NEURONS, SHAPES, WIDTH, WORDS, Mlp, Transformer, learned
from .masklib import Applier, larger

#: The label of data without a mask, in masklib, of two masks.
NO_MASK = 2
WEIGHTS = st.sampled_from([-1.0, -0.5, 0.0, 0.25, 1.0, 2.0])


def transformer() -> Transformer:
    torch.manual_seed(0)
    return Transformer().double()


def tokens() -> Tensor:
    return torch.randint(WORDS, (4, 5), generator=torch.Generator().manual_seed(0))


def loss(model: nn.Module) -> Tensor:
    """Of the next token, with no two tokens alike in what they teach."""
    return model(tokens())[:, :-1].log_softmax(-1).gather(-1, tokens()[:, 1:, None]).square().sum()


def indices(data: st.DataObject, n_masks: int = 2, *, unmasked: bool = True) -> Tensor:
    highest = n_masks if unmasked else n_masks - 1
    drawn = data.draw(st.lists(st.integers(0, highest), min_size=20, max_size=20))
    return torch.tensor(drawn).view(4, 5)


def as_labels(index: Tensor) -> Tensor:
    return index.where(index < NO_MASK, gr.UNLABELED)


def units(data: st.DataObject, width: int) -> list[int]:
    return data.draw(st.lists(st.integers(0, width - 1), unique=True, min_size=1))


def mask(chosen: list[int], width: int, weight: float = 1.0, elsewhere: float = 0.0) -> Tensor:
    made = torch.full((width,), elsewhere, dtype=torch.float64)
    made[chosen] = weight
    return made


def hook_point(kind: str) -> list[str]:
    """Masked in layers 1 and 2."""
    return [f"blocks.{layer}.{kind}" for layer in range(1, LAYERS)]


@pytest.mark.parametrize("kind", SHAPES)
@settings(max_examples=10)
@given(st.data())
def test_a_mask_spec_is_a_spec_and_a_pattern(kind: str, data: st.DataObject) -> None:
    model, width = transformer(), SHAPES[kind][0]
    routes = [(units(data, width), data.draw(WEIGHTS), data.draw(WEIGHTS)) for _ in range(2)]
    masks = torch.stack([mask(chosen, width, weight, elsewhere) for chosen, weight, elsewhere in routes])
    if kind == "attn.hook_z":
        masks = masks[..., None].expand(2, *SHAPES[kind])
    index = indices(data)
    with Applier(model, hook_point(kind), masks).masking(index):
        theirs = loss(model)
    spec = gr.RoutingSpec({label: gr.Route(*route) for label, route in enumerate(routes)}, width)
    site = gr.Site(spec, dim=2)  # of [batch, time, heads, head size] and of [batch, time, width]
    router = gr.Router(model, {f"blocks.[12].{kind}": site})
    with router(as_labels(index)):
        ours = loss(model)
    assert torch.allclose(theirs, ours)
    assert_same(learned(model, theirs), learned(model, ours))
    router.remove()


@settings(max_examples=10)
@given(st.data())
def test_a_mask_of_any_weights_is_a_mixture_over_single_units(data: st.DataObject) -> None:
    model = transformer()
    masks = torch.tensor(
        data.draw(st.lists(st.lists(WEIGHTS, min_size=NEURONS, max_size=NEURONS), min_size=2, max_size=2)),
        dtype=torch.float64,
    )
    index = indices(data)
    applier = Applier(model, hook_point("mlp.hook_post"), masks)
    with applier.masking(index):
        theirs = loss(model)
    router = gr.Router(model, {"blocks.[12].mlp.hook_post": gr.RoutingSpec.one_per_label(NEURONS)})
    with router(applier.table[index]):
        ours = loss(model)
    assert_same(learned(model, theirs), learned(model, ours))
    router.remove()


@settings(max_examples=10)
@given(st.data())
def test_a_mask_weight_is_on_unmasked_tokens_too(data: st.DataObject) -> None:
    model, weight = transformer(), data.draw(st.sampled_from([-1.0, 0.25, 2.0]))
    chosen = [units(data, NEURONS) for _ in range(2)]
    index = indices(data)
    applier = Applier(model, hook_point("mlp.hook_post"), torch.stack([mask(each, NEURONS) for each in chosen]))
    with applier.masking(index, mask_weight=weight):
        theirs = loss(model)
    router = gr.Router(
        model,
        {
            "blocks.[12].mlp.hook_post": gr.RoutingSpec(
                {label: gr.Route(each, weight=weight) for label, each in enumerate(chosen)},
                NEURONS,
                unlabeled=gr.Route(slice(None), weight=weight),
            )
        },
    )
    with router(as_labels(index)):
        ours = loss(model)
    assert_same(learned(model, theirs), learned(model, ours))
    router.remove()


@settings(max_examples=10)
@given(st.data())
def test_partial_boolean_masks_are_a_mixture(data: st.DataObject) -> None:
    model = transformer()
    chosen = [units(data, WIDTH) for _ in range(2)]
    amounts = torch.rand(4, 5, dtype=torch.float64)  # how much of mask 1
    applier = Applier(model, hook_point("hook_resid_post"), torch.stack([mask(each, WIDTH) for each in chosen]))
    with applier.mixing(amounts):
        theirs = loss(model)
    router = gr.Router(model, {"blocks.[12].hook_resid_post": gr.RoutingSpec(dict(enumerate(chosen)), WIDTH)})
    with router(torch.stack([1 - amounts, amounts], -1)):
        ours = loss(model)
    assert_same(learned(model, theirs), learned(model, ours))
    router.remove()


def test_its_rules_give_a_position_the_label_of_the_next_token() -> None:
    words, batch = torch.tensor([3, 7]), tokens()
    in_list = torch.isin(batch, words)
    rule = torch.where(in_list, 0, NO_MASK)[:, 1:]  # of the batch without its first column, as masklib's rules do
    table = torch.full((WORDS,), gr.UNLABELED)
    table[words] = 0
    assert torch.equal(table[batch][:, 1:], as_labels(rule))
    assert (table[batch][:, 1:] != table[batch][:, :-1]).any()


# ------------------------------------------------------------------ ablation

RETAIN, FORGET, SPARE = [0, 1, 2, 3, 4], [4, 5, 6], [7]  # unit 4 is in two masks
POST = "blocks.1.mlp.hook_post"


@torch.no_grad()
def test_zero_ablate_switches_off_what_ablated_does_where_no_other_label_teaches_it() -> None:
    model, own = transformer(), [5, 6]
    router = gr.Router(model, {POST: gr.RoutingSpec({"retain": RETAIN, "forget": own}, NEURONS)})
    with Applier(model, [POST], mask(own, NEURONS)[None]).zero_ablate(0):
        theirs = model(tokens())
    with router.ablated("forget"):
        assert torch.equal(model(tokens()), theirs)
    assert not torch.allclose(model(tokens()), theirs)


@torch.no_grad()
def test_zero_ablate_switches_off_what_others_teach_too_and_ablated_does_not() -> None:
    model = transformer()
    applier = Applier(model, [POST], mask(FORGET, NEURONS)[None])
    router = gr.Router(model, {POST: gr.RoutingSpec({"retain": RETAIN, "forget": FORGET}, NEURONS)})
    with applier.zero_ablate(0):
        theirs = model(tokens())
    with router.ablated("forget"):
        assert not torch.allclose(model(tokens()), theirs)
    with router.ablated("retain", "forget"):
        assert not torch.allclose(model(tokens()), theirs)
    by_itself = gr.Router(model, {POST: gr.RoutingSpec({"off": FORGET}, NEURONS)})
    with by_itself.ablated("off"):
        assert torch.equal(model(tokens()), theirs)


@torch.no_grad()
def test_units_that_no_label_teaches_are_ablated_by_a_label_that_no_data_has() -> None:
    model = transformer()
    with Applier(model, [POST], mask(SPARE, NEURONS)[None]).zero_ablate(0):
        theirs = model(tokens())
    router = gr.Router(model, {POST: gr.RoutingSpec({"retain": RETAIN, "forget": FORGET, "spare": SPARE}, NEURONS)})
    with router.ablated("spare"):
        assert torch.equal(model(tokens()), theirs)


@torch.no_grad()
def test_zero_ablate_of_a_soft_mask_scales_and_ablated_switches_off() -> None:
    model = transformer()
    soft = mask([5, 6], NEURONS, weight=0.5)
    with Applier(model, [POST], soft[None]).zero_ablate(0):
        theirs = model(tokens())
    with Applier(model, [POST], (soft != 0).double()[None]).zero_ablate(0):
        off = model(tokens())
    router = gr.Router(model, {POST: gr.RoutingSpec({"soft": gr.Route([5, 6], weight=0.5)}, NEURONS)})
    with router.ablated("soft"):
        assert torch.equal(model(tokens()), off)
    assert not torch.allclose(off, theirs)


def both_blocks(model: nn.Module, index: Tensor) -> tuple[Tensor, Tensor]:
    """The logits and the loss of masklib's mask_and_zero_ablate for retain (index 1), and of both blocks of a router."""
    own = [5, 6, 7]
    masks = torch.stack([mask(own, NEURONS), mask(RETAIN, NEURONS)])
    with Applier(model, [POST], masks).mask_and_zero_ablate(index, default=NO_MASK, ablating=[1]):
        theirs = loss(model)
    router = gr.Router(model, {POST: gr.RoutingSpec({"forget": own, "retain": RETAIN}, NEURONS)})
    with router(index), router.ablated("forget"):
        ours = loss(model)
    router.remove()
    return theirs, ours


def test_mask_and_zero_ablate_is_both_blocks_where_all_tokens_are_to_be_ablated() -> None:
    model = transformer()
    theirs, ours = both_blocks(model, torch.ones(4, 5, dtype=torch.long))
    assert torch.equal(theirs, ours)
    assert_same(learned(model, theirs), learned(model, ours))


def test_mask_and_zero_ablate_is_per_token_and_ablated_is_not() -> None:
    theirs, ours = both_blocks(transformer(), torch.tensor([0, 1, 1, 0, 1]).expand(4, 5))
    assert not torch.allclose(theirs, ours)


# ------------------------------------------------------------------ surgery


def grown(mlp: Mlp, extra: int, scale: float) -> Mlp:
    """What masklib's model expansion makes of an MLP: new rows and new columns, both random, times the scale."""
    new = Mlp(NEURONS + extra).double()
    shapes = {name: parameter.shape for name, parameter in new.named_parameters()}
    new.load_state_dict({name: larger(old, shapes[name], scale) for name, old in mlp.state_dict().items()})
    return new


def test_expansion_draws_the_columns_too_and_add_units_makes_them_zero() -> None:
    mlp, x = transformer().blocks[1].mlp, torch.randn(3, WIDTH, dtype=torch.float64)
    before, theirs, ours = mlp(x), grown(mlp, 2, scale=1.0), copy.deepcopy(mlp)
    new = add_units_(ours.up, ours.down, 2)
    assert torch.allclose(ours(x), before)
    assert not torch.allclose(theirs(x), before)
    for one, other in zip(theirs.parameters(), ours.parameters(), strict=True):
        assert one.shape == other.shape
    kept = [ours.up.weight[:NEURONS], ours.up.bias[:NEURONS], ours.down.weight[:, :NEURONS], ours.down.bias]
    for one, other in zip(kept, mlp.parameters(), strict=True):
        assert torch.equal(one, other)
    assert ours.up.weight[new].all()
    assert not ours.down.weight[:, new].any()
    assert theirs.down.weight[:, new].all()
    # The page's line that makes ours like theirs.
    with torch.no_grad():
        ours.down.weight[:, new].normal_(std=0.02)
    assert ours.down.weight[:, new].all()
    assert not torch.allclose(ours(x), before)


def test_expansion_with_a_coefficient_of_zero_is_the_old_function() -> None:
    mlp, x = transformer().blocks[1].mlp, torch.randn(3, WIDTH, dtype=torch.float64)
    assert torch.allclose(grown(mlp, 2, scale=0.0)(x), mlp(x))


def test_contraction_takes_the_first_corner_as_a_view_and_contract_copies_it() -> None:
    model, width = transformer(), NEURONS - 2
    model.blocks = nn.ModuleList([model.blocks[0]])
    router = gr.Router(model, {"blocks.0.mlp.hook_post": gr.RoutingSpec.split({"retain": width, "forget": 2})})
    smaller = contract(router, "forget", example=tokens()).model
    corner = {"up.weight": (slice(width),), "up.bias": (slice(width),), "down.weight": (slice(None), slice(width))}
    for name, old in model.blocks[0].mlp.named_parameters():
        view = old.detach()[corner.get(name, ())]
        new = smaller.blocks[0].mlp.get_parameter(name)
        assert torch.equal(new, view)
        assert view.untyped_storage().data_ptr() == old.untyped_storage().data_ptr()
        assert new.untyped_storage().data_ptr() != old.untyped_storage().data_ptr()


def test_a_mask_over_heads_and_their_features_needs_them_in_one_dimension() -> None:
    """As where both were expanded: at the input of the output projection they are."""
    model = transformer()
    old = torch.zeros(SHAPES["attn.hook_z"], dtype=torch.bool)
    old[: HEADS - 1, :1] = True
    target = ~old  # no product of a mask over heads and one over features
    index = torch.zeros(4, 5, dtype=torch.long)
    with Applier(model, ["blocks.1.attn.hook_z"], target.double()[None]).masking(index):
        theirs = loss(model)
    spec = gr.RoutingSpec({0: target.flatten()}, target.numel())
    router = gr.Router(model, {"blocks.1.attn.o": gr.Site(spec, on="input")})
    with router(index):
        ours = loss(model)
    assert_same(learned(model, theirs), learned(model, ours))
