"""Activation checkpointing: the recomputed pass is routed by the labels of its own first pass, or an error says why."""

import contextlib
from functools import partial

import pytest
import torch
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

import gradroute as gr
from composition.forms import WARNINGS_OF_TORCH, Expected, Net, Routed, assert_same, batch, expected_gradients

pytestmark = WARNINGS_OF_TORCH

REENTRANT = pytest.mark.parametrize(
    "reentrant",
    [
        pytest.param(False, id="non-reentrant", marks=pytest.mark.supports("activation checkpointing, non-reentrant")),
        pytest.param(True, id="reentrant", marks=pytest.mark.supports("activation checkpointing, reentrant")),
    ],
)


def checkpointed(module, *, reentrant: bool):
    """The module run under `checkpoint`. Reentrant checkpointing wants an input that requires grad."""

    def run(x: torch.Tensor, *args, **kwargs) -> torch.Tensor:
        return checkpoint(partial(module, **kwargs), x.requires_grad_(), *args, use_reentrant=reentrant)

    return run


@REENTRANT
def test_backward_inside_the_block_routes(routed: Routed, reentrant: bool) -> None:
    for seed in range(2):
        routed.zero_grad()
        x, labels = batch(seed=seed)
        with routed.block(labels):
            output = routed.call(checkpointed(routed.module, reentrant=reentrant), x, labels)
            output.square().sum().backward()
        assert_same(routed.gradients(), expected_gradients(x, labels))


@pytest.mark.supports("non-reentrant checkpointing, backward outside of the block")
def test_backward_outside_of_the_block_routes_without_reentry(routed: Routed) -> None:
    x, labels = batch()
    output = routed(x, labels, via=checkpointed(routed.module, reentrant=False))
    output.square().sum().backward()
    assert_same(routed.gradients(), expected_gradients(x, labels))


@pytest.mark.refuses("reentrant checkpointing, backward outside of the block", "UsageError", forms=["router"])
def test_reentrant_backward_outside_of_the_block_raises() -> None:
    x, labels = batch()
    routed = Routed("router")
    output = routed(x, labels, via=checkpointed(routed.module, reentrant=True))
    with pytest.raises(gr.RoutingError, match="backward inside the same"):
        output.square().sum().backward()


def test_reentrant_backward_in_a_block_of_other_labels_raises() -> None:
    (x, labels), (_, others) = batch(seed=0), batch(seed=1)
    routed = Routed("router")
    output = routed(x, labels, via=checkpointed(routed.module, reentrant=True))
    with routed.router(others), pytest.raises(gr.RoutingError, match="backward inside the same"):
        output.square().sum().backward()


@pytest.mark.supports("reentrant checkpointing of the routed module itself", forms=["functional", "routed_module"])
@pytest.mark.parametrize("form", ["functional", "routed_module"])
def test_labels_that_are_arguments_are_recomputed_with_their_pass(form: str) -> None:
    batches = [batch(seed=seed) for seed in range(3)]
    routed = Routed(form)
    run = checkpointed(routed.module, reentrant=True)
    sum(routed(x, labels, via=run).square().sum() for x, labels in batches).backward()
    assert_same(routed.gradients(), sum_of_expected(batches), rtol=1e-4, atol=1e-5)


@pytest.mark.supports("non-reentrant checkpointing, several forwards with different labels before one backward")
@pytest.mark.parametrize("inside", [False, True], ids=["outside", "in a block of yet other labels"])
def test_several_forwards_before_one_backward_keep_their_own_labels(routed: Routed, inside: bool) -> None:
    batches = [batch(seed=seed) for seed in range(3)]
    run = checkpointed(routed.module, reentrant=False)
    loss = sum(routed(x, labels, via=run).square().sum() for x, labels in batches)
    with routed.block(batch(seed=4)[1]) if inside else contextlib.nullcontext():
        loss.backward()
    assert_same(routed.gradients(), sum_of_expected(batches), rtol=1e-4, atol=1e-5)


@pytest.mark.refuses("reentrant checkpointing, several forwards before one backward", "UsageError", forms=["router"])
def test_reentrant_forwards_with_different_labels_before_one_backward_raise() -> None:
    routed = Routed("router")
    run = checkpointed(routed.module, reentrant=True)
    outputs = [routed(*batch(seed=seed), via=run) for seed in range(2)]
    with routed.router(batch(seed=1)[1].clone()), pytest.raises(gr.RoutingError, match="backward inside the same"):
        sum(output.square().sum() for output in outputs).backward()


def sum_of_expected(batches) -> Expected:
    each = [expected_gradients(x.detach(), labels) for x, labels in batches]
    closed = {name: torch.stack([gradients.closed[name] for gradients in each]).all(0) for name in each[0]}
    return Expected({name: sum(gradients[name] for gradients in each) for name in each[0]}, closed)


class Checkpointing(Net):
    """Checkpoints itself, as transformers models do; `site` is inside of the region, the module around it."""

    reentrant = False

    def forward(self, x: torch.Tensor, labels: torch.Tensor | None = None) -> torch.Tensor:
        if not self.training:
            return super().forward(x, labels)
        return checkpoint(super().forward, x, labels, use_reentrant=self.reentrant)


@REENTRANT
def test_a_model_that_checkpoints_itself_routes(form: str, reentrant: bool) -> None:
    x, labels = batch()
    routed = Routed(form, type("Checkpointing", (Checkpointing,), {"reentrant": reentrant}))
    with routed.block(labels) if form != "routed_module" or not reentrant else routed.router(labels):
        routed(x.requires_grad_(), labels).square().sum().backward()
    assert_same(routed.gradients(), expected_gradients(x.detach(), labels))


@pytest.mark.refuses(
    "reentrant checkpointing inside of the model, without a block", "UsageError", forms=["routed_module"]
)
def test_a_routed_module_around_reentrant_checkpointing_says_to_use_a_block() -> None:
    x, labels = batch()
    routed = Routed("routed_module", type("Checkpointing", (Checkpointing,), {"reentrant": True}))
    output = routed(x.requires_grad_(), labels)
    with pytest.raises(gr.RoutingError, match="backward inside the same"):
        output.square().sum().backward()


@pytest.mark.supports("selective activation checkpointing")
def test_selective_checkpointing_routes(routed: Routed) -> None:
    def save_products(_, operation, *args, **kwargs) -> CheckpointPolicy:
        products = (torch.ops.aten.addmm.default, torch.ops.aten.mm.default)
        return CheckpointPolicy.MUST_SAVE if operation in products else CheckpointPolicy.PREFER_RECOMPUTE

    def run(*args, **kwargs) -> torch.Tensor:
        context = partial(create_selective_checkpoint_contexts, save_products)
        return checkpoint(routed.module, *args, use_reentrant=False, context_fn=context, **kwargs)

    x, labels = batch()
    routed(x, labels, via=run).square().sum().backward()
    assert_same(routed.gradients(), expected_gradients(x, labels))


@pytest.fixture(params=[False, True], ids=["non-reentrant", "reentrant"])
def compiled(routed: Routed, request: pytest.FixtureRequest):
    """The module under a checkpoint that is itself inside of the compiled code."""

    def run(*args, **kwargs) -> torch.Tensor:
        return checkpoint(partial(routed.module, **kwargs), *args, use_reentrant=request.param)

    torch.compiler.reset()
    return torch.compile(run, backend="aot_eager", fullgraph=True)


@pytest.mark.supports("checkpointing inside of `torch.compile`")
@pytest.mark.parametrize("form", ["functional", "router"])
def test_checkpointing_inside_of_compiled_code_routes(routed: Routed, compiled) -> None:
    for seed in range(2):
        routed.zero_grad()
        x, labels = batch(seed=seed)
        routed(x, labels, via=compiled).square().sum().backward()
        assert_same(routed.gradients(), expected_gradients(x, labels))


@pytest.mark.refuses("checkpointing inside of `torch.compile`", "Dynamo: a block begins inside of the checkpoint")
@pytest.mark.parametrize("form", ["routed_module"])
def test_a_block_inside_of_a_compiled_checkpoint_is_refused_by_dynamo(routed: Routed, compiled) -> None:
    with pytest.raises(torch._dynamo.exc.Unsupported, match=r"(?i)side.?effect"):
        routed(*batch(), via=compiled)
