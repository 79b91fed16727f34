"""docs/moving.md, "From SGTM": row by row."""

import contextlib
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("transformers")

import gradroute as gr
from gradroute.blocks import block_sites
from gradroute.optim import Isolation
from gradroute.surgery import ablate_

from . import sgtm
from .comparing import assert_same
from .sgtm import (
    HEADS,
    LAYERS,
    NEURONS,
    READERS_BIASES,
    RETAIN_FEATURES,
    RETAIN_HEADS,
    RETAIN_NEURONS,
    WIDTH,
    WORDS,
    close_to_forget,
    gpt_neo,
    gradients,
    loss,
)

NEURON_SPEC = gr.RoutingSpec.split({"retain": RETAIN_NEURONS, "forget": NEURONS - RETAIN_NEURONS})
HEAD_SPEC = gr.RoutingSpec.split({"retain": RETAIN_HEADS, "forget": HEADS - RETAIN_HEADS})
FEATURE_SPEC = HEAD_SPEC.repeat(WIDTH // HEADS)
LABELS = {"retain": 0, "forget": 1, "default": gr.UNLABELED}


def sites(model: nn.Module) -> dict[str, gr.Site]:
    return block_sites(model, mlp=NEURON_SPEC, heads=HEAD_SPEC)


def of_a_batch(router: gr.Router, mode: str) -> dict[str, Tensor]:
    """What a batch of one label teaches, in the words of the page."""
    off = router.ablated("forget") if mode == "retain" else contextlib.nullcontext()
    with router(torch.tensor([LABELS[mode]] * 3)), off:
        return gradients(router.model, loss(router.model))


def in_mode(model: nn.Module, mode: str, **closed: object) -> dict[str, Tensor]:
    with sgtm.forget_part_off(model) if mode == "retain" else contextlib.nullcontext():
        found = gradients(model, loss(model))
    if mode == "forget":
        close_to_forget(found, **closed)
    return found


@pytest.mark.parametrize("mode", ["retain", "default"])
def test_a_batch_in_mode_retain_or_default(mode: str) -> None:
    model = gpt_neo()
    theirs = in_mode(model, mode)
    assert_same(theirs, of_a_batch(gr.Router(model, sites(model)), mode))


def test_a_batch_in_mode_forget_but_for_the_biases_of_what_reads() -> None:
    model = gpt_neo()
    theirs = in_mode(model, "forget")
    assert_same(theirs, of_a_batch(gr.Router(model, sites(model)), "forget"), but=READERS_BIASES)


def with_closed_biases(model: nn.Module) -> dict[str, gr.Site | list[gr.Site]]:
    """As on the page: beside each site of a layer that reads, one of its bias alone."""
    closed = gr.RoutingSpec({"retain": slice(None), "forget": []}, WIDTH)
    bias = gr.Site(closed, level="parameters", parameters=("bias",))
    return {name: [site, bias] if site.on == "input" else site for name, site in sites(model).items()}


@pytest.mark.parametrize("mode", LABELS)
def test_with_sites_of_their_biases_a_batch_of_any_mode(mode: str) -> None:
    model = gpt_neo()
    theirs = in_mode(model, mode)
    assert_same(theirs, of_a_batch(gr.Router(model, with_closed_biases(model)), mode))


def test_layers_that_are_not_masked_are_left_out() -> None:
    model = gpt_neo()
    theirs = in_mode(model, "forget", layers=[1])
    some = {name: site for name, site in sites(model).items() if ".h.1." in name}
    assert 0 < len(some) < len(sites(model))
    last = tuple(f"h.1.{name}" for name in READERS_BIASES)
    assert_same(theirs, of_a_batch(gr.Router(model, some), "forget"), but=last)


def test_without_proj_what_reads_is_no_site() -> None:
    model = gpt_neo()
    theirs = in_mode(model, "forget", columns=False)
    writers = {name: site for name, site in sites(model).items() if site.on == "output"}
    assert_same(theirs, of_a_batch(gr.Router(model, writers), "forget"))


def test_gradient_routing_is_level_activations() -> None:
    """It detaches retain neurons before the activation function, and retain heads before the output projection."""
    model = gpt_neo()
    handles = []
    for block in model.transformer.h:
        keep = torch.arange(NEURONS) >= RETAIN_NEURONS
        features = torch.arange(WIDTH) >= RETAIN_FEATURES
        handles += [
            block.mlp.c_fc.register_forward_hook(lambda m, a, z, keep=keep: torch.where(keep, z, z.detach())),
            block.attn.attention.out_proj.register_forward_pre_hook(
                lambda m, a, keep=features: (torch.where(keep, a[0], a[0].detach()),)
            ),
        ]
    theirs = gradients(model, loss(model))
    for handle in handles:
        handle.remove()
    router = gr.Router(
        model, {"*.mlp.c_fc": NEURON_SPEC, "*.attn.attention.out_proj": gr.Site(FEATURE_SPEC, on="input")}
    )
    assert_same(theirs, of_a_batch(router, "forget"))


def test_activation_masking_is_the_retain_part_off_for_a_forget_batch() -> None:
    model = gpt_neo()
    with sgtm.retain_part_off(model):
        theirs = gradients(model, loss(model))
    router = gr.Router(model, sites(model))
    with router(torch.ones(3, dtype=torch.long)), router.ablated("retain"):
        ours = gradients(model, loss(model))
    assert_same(theirs, ours)


def closed_to_forget(width: int) -> gr.Site:
    return gr.Site(gr.RoutingSpec({"retain": slice(None), "forget": []}, width), level="parameters")


@pytest.mark.parametrize("tied", [False, True])
def test_embeddings_and_norms_are_sites_of_all_their_units(tied: bool) -> None:
    """Position embeddings have no batch, so the label is one for all. A head that shares their weight is a site, too."""
    model = gpt_neo(tied=tied)
    theirs = in_mode(model, "forget", embeddings=True)
    names = ("wte", "wpe", "h.*.ln_[12]")
    more = {f"transformer.{name}": closed_to_forget(WIDTH) for name in names}
    more |= {"lm_head": closed_to_forget(WORDS)} if tied else {}
    router = gr.Router(model, {**sites(model), **more})
    with router(torch.tensor(LABELS["forget"])):
        ours = gradients(model, loss(model))
    assert_same(theirs, ours, but=READERS_BIASES)
    with pytest.raises(gr.RoutingError, match="wpe"):
        of_a_batch(router, "forget")


# ------------------------------------------------------------------ optimizers


def with_its_optimizers(make: Callable[[list[Tensor]], torch.optim.Optimizer], modes: list[str]) -> dict[str, Tensor]:
    """The parameters after steps in these modes under an optimizer for each part, as leaves of their own."""
    model = gpt_neo()
    whole = dict(model.named_parameters())
    leaves = {
        part: {name: whole[name].detach()[where].clone().requires_grad_() for name, where in entries.items()}
        for part, entries in sgtm.parts(model).items()
    }
    optimizers = {part: make(list(each.values())) for part, each in leaves.items()}
    stepping = {"retain": ("joint", "retain"), "forget": ("joint", "forget"), "default": ("joint", "retain", "forget")}
    for mode in modes:
        found = in_mode(model, mode)
        for part in stepping[mode]:
            for name, where in sgtm.parts(model)[part].items():
                leaves[part][name].grad = found[name][where].clone()
            optimizers[part].step()
        with torch.no_grad():
            for part, entries in sgtm.parts(model).items():
                for name, where in entries.items():
                    whole[name][where] = leaves[part][name]
    return {name: parameter.detach() for name, parameter in whole.items()}


def with_an_isolation(
    make: Callable[[list[Tensor]], torch.optim.Optimizer], modes: list[str], *, only_writers: bool, **options: object
) -> dict[str, Tensor]:
    model = gpt_neo()
    router = gr.Router(model, sites(model))
    writers = [name for name, site in router.sites.items() if site[0].on == "output"]  # the line of the page
    optimizer = make(list(model.parameters()))
    isolation = Isolation(router, optimizer, sites=writers if only_writers else None, **options)
    for mode in modes:
        of_a_batch(router, mode)
        # The one difference of the gradients, tested above: SGTM closes these to "forget" batches.
        for name, parameter in model.named_parameters():
            if mode == "forget" and name.endswith(READERS_BIASES):
                parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
    isolation.remove()
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


BETAS = (0.9, 0.99)
MODES = ["default", "retain", "forget", "retain", "retain", "forget", "default"]


def sgd(parameters: list[Tensor]) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.1, momentum=0.9, weight_decay=0.1)


def adamw(parameters: list[Tensor]) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=0.01, betas=BETAS, weight_decay=0.1)


def test_an_optimizer_for_each_part_is_an_isolation_of_the_writers() -> None:
    assert_same(with_its_optimizers(sgd, MODES), with_an_isolation(sgd, MODES, only_writers=True))


def test_its_optimizers_move_the_columns_that_a_whole_isolation_holds() -> None:
    """In a step of "retain", those that read forget units, by momentum and decay."""
    moved = {}
    for who, run in (("theirs", with_its_optimizers), ("ours", partial(with_an_isolation, only_writers=False))):
        before, after = run(sgd, ["default"]), run(sgd, ["default", "retain"])
        for inner, retain in ((sgtm.NEURON_COLUMNS, RETAIN_NEURONS), (sgtm.HEAD_COLUMNS, RETAIN_FEATURES)):
            names = [name for name in before if name.endswith(inner)]
            moved[who, inner] = [not torch.equal(before[n][:, retain:], after[n][:, retain:]) for n in names]
            assert all(not torch.equal(before[n][:, :retain], after[n][:, :retain]) for n in names)
    for inner in (sgtm.NEURON_COLUMNS, sgtm.HEAD_COLUMNS):
        assert moved["theirs", inner] == [True] * LAYERS
        assert moved["ours", inner] == [False] * LAYERS


def test_under_adamw_an_optimizer_for_each_part_counts_its_own_steps() -> None:
    """The same as long as every part takes every step; rows that were held for one then move less under a shared count."""

    def undecayed(parameters: list[Tensor]) -> torch.optim.Optimizer:
        return torch.optim.AdamW(parameters, lr=0.01, betas=BETAS, eps=1e-15, weight_decay=0.0)

    always = ["default"] * 3
    assert_same(with_its_optimizers(adamw, always), with_an_isolation(adamw, always, only_writers=True))
    before = dict(gpt_neo().named_parameters())
    late = ["retain", "default"]
    theirs, ours = with_its_optimizers(undecayed, late), with_an_isolation(undecayed, late, only_writers=True)
    # The first average of a gradient, corrected as if it were of two steps.
    less = (1 + BETAS[1]) ** 0.5 / (1 + BETAS[0])
    for part, entries in sgtm.parts(gpt_neo()).items():
        for name, where in entries.items():
            moved = (theirs[name] - before[name])[where] * (less if part == "forget" else 1)
            torch.testing.assert_close((ours[name] - before[name])[where], moved, rtol=1e-6, atol=1e-9)


def test_with_own_steps_an_isolation_is_an_optimizer_for_each_part() -> None:
    ours = with_an_isolation(adamw, MODES, only_writers=True, own_steps=True)
    assert_same(with_its_optimizers(adamw, MODES), ours)


# ------------------------------------------------------------------ ablation


def test_ablate_is_ablate_() -> None:
    model, theirs = gpt_neo(), gpt_neo()
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            inner = name.split(".", 3)[-1]
            if inner in sgtm.NEURON_ROWS:
                parameter[RETAIN_NEURONS:] = 0
            elif inner in sgtm.HEAD_ROWS:
                parameter[RETAIN_FEATURES:] = 0
            elif inner == sgtm.NEURON_COLUMNS:
                parameter[:, RETAIN_NEURONS:] = 0
            elif inner == sgtm.HEAD_COLUMNS:
                parameter[:, RETAIN_FEATURES:] = 0
    router = gr.Router(model, sites(model))
    ablate_(router, "forget", example=torch.zeros(1, 4, dtype=torch.long))
    for ours, their in zip(model.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(ours, their)


def test_trainable_ablation_draws_around_zero_and_reinit_around_the_mean_of_the_rest() -> None:
    """Both with the standard deviation of the rest; a function in place of True draws as it likes."""
    up, width = nn.Linear(4, 4000), 2000
    with torch.no_grad():
        up.weight[:width].normal_(5.0, 0.5)
        their_draw = torch.empty(width, 4).normal_(0, float(up.weight[:width].std()))
    model = nn.Sequential(up, nn.ReLU(), nn.Linear(4000, 1))
    new = slice(width, None)
    router = gr.Router(model, {"0": gr.RoutingSpec.split({"retain": width, "forget": width})})
    ablate_(router, "forget", reinit=True)
    ours = up.weight[new].detach()
    assert abs(ours.mean() - 5) < 0.1
    assert abs(their_draw.mean()) < 0.1
    assert abs(ours.std() - 0.5) < 0.1
    assert abs(their_draw.std() - 0.5) < 0.1
    ablate_(router, "forget", reinit=lambda weight: nn.init.normal_(weight, std=0.5))
    ours = up.weight[new].detach()
    assert abs(ours.mean()) < 0.1
    assert abs(ours.std() - 0.5) < 0.1
