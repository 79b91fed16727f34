"""docs/moving.md where it says `silent=`: what other code switches off in the forward pass for the examples or tokens of some labels."""

import contextlib

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.functional import gelu, linear

import gradroute as gr

from .comparing import assert_same
from .hook_points import NEURONS, learned
from .masklib import Applier
from .test_masklib import NO_MASK, POST, as_labels, indices, loss, mask, tokens, transformer


@settings(max_examples=10)
@given(st.data())
def test_mask_and_zero_ablate_is_a_spec_with_silent_units(data: st.DataObject) -> None:
    """Tokens of retain have the other units off, and all other tokens keep theirs: the default lets everything through."""
    model, own, retain = transformer(), [5, 6, 7], [0, 1, 2, 3, 4]
    index = indices(data)
    masks = torch.stack([mask(own, NEURONS), mask(retain, NEURONS)])
    with Applier(model, [POST], masks).mask_and_zero_ablate(index, default=NO_MASK, ablating=[1]):
        theirs = loss(model)
    spec = gr.RoutingSpec({0: own, 1: retain}, NEURONS, silent={1: 0})
    router = gr.Router(model, {POST: spec})
    with router(as_labels(index)):
        ours = loss(model)
    torch.testing.assert_close(theirs, ours, rtol=1e-12, atol=1e-12)
    assert_same(learned(model, theirs), learned(model, ours))
    router.remove()


def test_units_that_no_label_teaches_are_ablated_as_the_untaught_ones() -> None:
    model = transformer()
    with torch.no_grad(), Applier(model, [POST], mask([7], NEURONS)[None]).zero_ablate(0):
        theirs = model(tokens())
    router = gr.Router(model, {POST: gr.RoutingSpec({"retain": [0, 1, 2, 3, 4], "forget": [5, 6]}, NEURONS)})
    with torch.no_grad(), router.ablated(gr.UNTAUGHT):
        assert torch.equal(model(tokens()), theirs)


# ------------------------------------------------------------------ SGTM

#: What is off for a batch of each mode, by strategy, in SGTM's words and in a spec's.
SILENT = {
    "parameter_masking": {"retain": "forget"},
    "activation_masking": {"retain": "forget", "forget": "retain"},
}


@pytest.mark.parametrize("strategy", SILENT)
def test_examples_of_all_modes_share_a_batch(strategy: str) -> None:
    pytest.importorskip("transformers")
    from gradroute.blocks import block_sites

    from . import sgtm
    from .test_sgtm import HEAD_SPEC, LABELS, NEURON_SPEC

    model, modes = sgtm.gpt_neo(), ["forget", "retain", "default"]
    words = torch.randint(sgtm.WORDS, (3, 6))
    theirs: dict[str, Tensor] = {}
    for row, mode in zip(words.split(1), modes, strict=True):
        masks_activations = strategy == "activation_masking"
        off = {"retain": sgtm.forget_part_off, "forget": sgtm.retain_part_off if masks_activations else None}.get(mode)
        with off(model) if off else contextlib.nullcontext():
            found = sgtm.gradients(model, model(row, labels=row).loss / 3)
        if mode == "forget" and not masks_activations:
            sgtm.close_to_forget(found)
        theirs = {name: gradient + theirs.get(name, 0) for name, gradient in found.items()}
    neurons, heads = (
        gr.RoutingSpec(spec.routes, spec.width, silent=SILENT[strategy]) for spec in (NEURON_SPEC, HEAD_SPEC)
    )
    router = gr.Router(model, block_sites(model, mlp=neurons, heads=heads))
    with router(torch.tensor([LABELS[mode] for mode in modes])):
        ours = sgtm.gradients(model, model(words, labels=words).loss)
    assert_same(theirs, ours, but=sgtm.READERS_BIASES if strategy == "parameter_masking" else ())


# ------------------------------------------------------------------ modules by topic

CORE, TOPIC = 6, 3


def test_modules_by_topic_run_for_their_own_examples_alone() -> None:
    """A core that all examples train, and for each topic hidden units that other examples, unlabeled ones too, do not meet."""
    torch.manual_seed(0)
    mlp = nn.Sequential(nn.Linear(4, CORE + 2 * TOPIC), nn.GELU(), nn.Linear(CORE + 2 * TOPIC, 4)).double()
    x, topics = torch.randn(9, 4, dtype=torch.float64), [0, 1, None] * 3
    up, down = mlp[0], mlp[2]
    outputs = []
    for row, topic in zip(x, topics, strict=True):
        own = [] if topic is None else [topic * TOPIC + unit for unit in range(TOPIC)]
        units = [*own, *range(2 * TOPIC, 2 * TOPIC + CORE)]
        outputs.append(linear(gelu(linear(row, up.weight[units], up.bias[units])), down.weight[:, units], down.bias))
    theirs = torch.stack(outputs)

    every = ("biology", "law")
    silent = {"biology": "others", "law": "others", gr.UNLABELED: every}
    spec = gr.RoutingSpec.split(dict.fromkeys(every, TOPIC), shared=CORE, unlabeled="shared", silent=silent)
    router = gr.Router(
        mlp,
        {
            "0": gr.Site(spec, level="parameters"),
            "2": gr.Site(spec, on="input", level="parameters"),
        },
    )
    with router(spec.encode([gr.UNLABELED if topic is None else every[topic] for topic in topics])):
        ours = mlp(x)
    torch.testing.assert_close(theirs, ours, rtol=1e-12, atol=1e-12)
    assert_same(learned(mlp, (theirs - 1).square().sum()), learned(mlp, (ours - 1).square().sum()))
    with torch.no_grad():
        assert not torch.allclose(mlp(x), theirs)  # outside of the block all units are on
