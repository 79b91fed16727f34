"""Labels that come after the forward pass, with what else PyTorch does between it and the optimizer's step."""

from functools import partial
from pathlib import Path

import pytest
import torch
from torch.utils.checkpoint import checkpoint

import gradroute as gr
from composition import parameter_forms
from composition.forms import (
    INPUTS,
    SPEC,
    WARNINGS_OF_TORCH,
    WIDTH,
    Expected,
    Routed,
    assert_same,
    batch,
    expected_gradients,
    label_kinds,
)
from composition.isolation import FORGET, RETAIN, UNITS_OF_FORGET, UNITS_OF_RETAIN, isolated, moved
from composition.two_processes import run_in_two_processes

pytestmark = [*WARNINGS_OF_TORCH, pytest.mark.parametrize("form", ["router", "routed_module"])]

SCRIPT = Path(__file__).parent / "scripts" / "deferred.py"
DEFERRED = "`router.deferred()`"


def deferred(routed: Routed, x: torch.Tensor, via=None):
    """The loss of a block whose labels are still to come, and what takes them."""
    with routed.router.deferred() as later:
        loss = (via or routed.module)(x).float().square().sum()
    return loss, later


@pytest.fixture(params=["activations", "parameters"])
def level(request) -> str:
    return request.param


@pytest.fixture
def at_level(form: str, level: str) -> Routed:
    return Routed(form, sites=parameter_forms.sites(SPEC) if level == "parameters" else None)


def expected(level: str, x: torch.Tensor, labels: torch.Tensor):
    return parameter_forms.expected(x, labels) if level == "parameters" else expected_gradients(x, labels)


@pytest.mark.supports(DEFERRED)
def test_labels_after_the_forward_pass_give_the_gradients_of_the_oracle(at_level: Routed, level: str) -> None:
    x, labels = batch()
    for kind in label_kinds(labels).values():
        at_level.zero_grad()
        loss, later = deferred(at_level, x)
        later.set(kind)
        loss.backward()
        assert_same(at_level.gradients(), expected(level, x, kind), rtol=1e-4, atol=1e-5)


@pytest.mark.refuses(f"{DEFERRED}: backward before the labels", "UsageError")
def test_backward_before_the_labels_raises(at_level: Routed) -> None:
    loss, _ = deferred(at_level, batch()[0])
    with pytest.raises(gr.RoutingError, match=r"labels were not set.*later\.set"):
        loss.backward()


@pytest.mark.supports(f"{DEFERRED}: several blocks before one backward")
def test_several_blocks_before_one_backward(at_level: Routed, level: str) -> None:
    batches = [batch(n, seed) for n, seed in [(8, 0), (4, 1), (12, 2)]]
    waiting = [(*deferred(at_level, x), labels) for x, labels in batches]
    for _, later, labels in reversed(waiting):
        later.set(labels)
    sum(loss for loss, _, _ in waiting).backward()
    x, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
    assert_same(at_level.gradients(), expected(level, x, labels), rtol=1e-4, atol=1e-5)


@pytest.mark.supports(f"{DEFERRED}: autocast and `GradScaler`")
def test_autocast_and_a_scaler_change_nothing(at_level: Routed) -> None:
    x, labels = batch()
    found = []
    for late in (False, True):
        at_level.zero_grad()
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**4)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            if late:
                loss, later = deferred(at_level, x)
            else:
                with at_level.router(labels):
                    loss = at_level.module(x).float().square().sum()
        if late:
            later.set(labels)
        scaler.scale(loss).backward()
        found.append(at_level.gradients())
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


@pytest.mark.parametrize(
    "reentrant",
    [
        pytest.param(False, marks=pytest.mark.supports(f"{DEFERRED}: activation checkpointing, non-reentrant")),
        pytest.param(True, marks=pytest.mark.supports(f"{DEFERRED}: activation checkpointing, reentrant")),
    ],
)
def test_checkpoints_are_recomputed_by_the_labels_that_were_set(at_level: Routed, level: str, reentrant: bool) -> None:
    x, labels = batch()
    with at_level.router.deferred() as later:
        loss = checkpoint(at_level.module, x.requires_grad_(), use_reentrant=reentrant).square().sum()
        later.set(labels)
        loss.backward()
    assert_same(at_level.gradients(), expected(level, x.detach(), labels), rtol=1e-4, atol=1e-5)


@pytest.mark.supports(f"{DEFERRED}: non-reentrant checkpointing, backward outside of the block")
def test_without_reentry_backward_may_come_after_the_block(at_level: Routed, level: str) -> None:
    x, labels = batch()
    run = partial(checkpoint, at_level.module, use_reentrant=False)
    loss, later = deferred(at_level, x.requires_grad_(), via=run)
    later.set(labels)
    loss.backward()
    assert_same(at_level.gradients(), expected(level, x.detach(), labels), rtol=1e-4, atol=1e-5)


@pytest.mark.refuses(f"{DEFERRED}: reentrant checkpointing, backward outside of the block", "UsageError")
def test_with_reentry_backward_after_the_block_raises(at_level: Routed) -> None:
    x, labels = batch()
    loss, later = deferred(at_level, x.requires_grad_(), via=partial(checkpoint, at_level.module, use_reentrant=True))
    later.set(labels)
    with pytest.raises(gr.RoutingError, match="backward inside the same|without route_labels would not be routed"):
        loss.backward()


@pytest.mark.supports(f"{DEFERRED}: double backward (`create_graph=True`)")
def test_second_derivatives_are_those_of_labels_that_were_known(at_level: Routed) -> None:
    x, labels = batch()
    found = []
    for late in (False, True):
        at_level.zero_grad()
        if late:
            loss, later = deferred(at_level, x)
            later.set(labels)
        else:
            with at_level.router(labels):
                loss = at_level.module(x).square().sum()
        first = torch.autograd.grad(loss, list(at_level.net.parameters()), create_graph=True)
        sum(gradient.square().sum() for gradient in first).backward()
        found.append(at_level.gradients())
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


@pytest.mark.supports(f"{DEFERRED}: `torch.autograd.grad(is_grads_batched=True)`")
def test_batched_gradients(at_level: Routed) -> None:
    x, labels = batch()
    found = []
    for late in (False, True):
        with at_level.router.deferred() if late else at_level.router(labels) as later:
            y = at_level.module(x).sum(0)
        if late:
            later.set(labels)
        parameters = list(at_level.net.parameters())
        found.append(torch.autograd.grad(y, parameters, torch.eye(len(y)), is_grads_batched=True))
    assert all(map(torch.equal, *found))


@pytest.mark.refuses(f"{DEFERRED}: `torch.func`, forward-mode AD", "UsageError")
def test_transforms_raise_in_the_forward_pass(at_level: Routed) -> None:
    x, _ = batch()
    with pytest.raises(gr.RoutingError, match="labels come too late"), at_level.router.deferred():
        torch.func.grad(lambda x: at_level.module(x).square().sum())(x)


@pytest.mark.refuses(f"{DEFERRED}: `torch.compile`", "UsageError")
def test_compiled_code_raises_in_the_forward_pass(at_level: Routed) -> None:
    torch.compiler.reset()
    compiled = torch.compile(at_level.net, backend="aot_eager")
    with pytest.raises(gr.RoutingError, match="labels come too late: compiled code"), at_level.router.deferred():
        compiled(batch()[0])


@pytest.mark.supports(f"{DEFERRED}: compiled autograd")
@pytest.mark.filterwarnings(  # from Python 3.12 on, of the standard library: torch looks at its own module with it
    "ignore:Dynamo detected a call to a `functools.lru_cache`-wrapped function at 'inspect.py:UserWarning"
)
def test_compiled_autograd_follows_the_labels_of_each_step_and_misses_none(routed: Routed) -> None:
    with torch._dynamo.config.patch(compiled_autograd=True):
        backward = torch.compile(lambda loss: loss.backward(), backend="aot_eager")
        for seed in range(2):
            routed.zero_grad()
            x, labels = batch(seed=seed)
            loss, later = deferred(routed, x)
            later.set(labels)
            backward(loss)
            assert_same(routed.gradients(), expected_gradients(x, labels), rtol=1e-4, atol=1e-5)
        with pytest.raises(gr.RoutingError, match="labels were not set"):
            backward(deferred(routed, x)[0])


# ---------------------------------------------------------------------- what a step may move


@pytest.fixture
def running(form: str):
    """An isolated optimizer after a step that taught all units, so that there is momentum."""
    routed, optimizer, isolation = isolated(form)
    loss, later = deferred(routed, batch()[0])
    later.set(torch.full((8,), gr.UNLABELED))
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    return routed, optimizer, isolation


@pytest.mark.supports(f"{DEFERRED}: `optim.Isolation`")
def test_a_step_moves_what_the_labels_teach_and_nothing_else(running) -> None:
    routed, optimizer, _ = running
    for labels, units in ((RETAIN, UNITS_OF_RETAIN), (FORGET, UNITS_OF_FORGET)):
        loss, later = deferred(routed, batch()[0])
        assert moved(routed, optimizer, optimizer.step) == [], "nobody knows yet what it teaches, and it taught nothing"
        later.set(labels)
        loss.backward()
        assert moved(routed, optimizer, optimizer.step) == units
        optimizer.zero_grad()


@pytest.mark.supports(f"{DEFERRED}: `optim.Isolation`")
@pytest.mark.parametrize("early", [False, True], ids=["labels before each backward", "all labels first"])
def test_a_block_counts_for_the_step_after_its_backward_however_many_wait(form: str, early: bool) -> None:
    layer = torch.nn.Linear(INPUTS, WIDTH)
    module = gr.RoutedModule(layer, {"": SPEC}) if form == "routed_module" else layer
    router = module.router if form == "routed_module" else gr.Router(layer, {"": SPEC})
    optimizer = torch.optim.AdamW(layer.parameters(), lr=0.1, weight_decay=0.1)
    gr.optim.Isolation(router, optimizer)
    blocks = []
    for seed, labels in enumerate((torch.full((8,), gr.UNLABELED), RETAIN, FORGET, RETAIN)):
        with router.deferred() as later:
            blocks.append((module(batch(seed=seed)[0]).sum(), later, labels))
        if early:
            later.set(labels)
    for loss, later, labels in blocks:
        if not early:
            later.set(labels)
        optimizer.zero_grad()
        loss.backward()
        before = layer.weight.detach().clone()
        optimizer.step()
        taught = SPEC.mask(labels).any(0)
        assert torch.equal((layer.weight != before).all(1), taught)
        assert torch.equal((layer.weight == before).all(1), ~taught)


@pytest.mark.supports(f"{DEFERRED}: `optim.Isolation`")
def test_a_step_in_the_block_moves_what_was_taught_in_it(running) -> None:
    routed, optimizer, _ = running
    with routed.router.deferred() as later:
        loss = routed.module(batch()[0]).square().sum()
        later.set(RETAIN)
        assert moved(routed, optimizer, optimizer.step) == []
        loss.backward()
        assert moved(routed, optimizer, optimizer.step) == UNITS_OF_RETAIN


@pytest.mark.supports(f"{DEFERRED}: `watch`")
def test_watch_reports_what_no_label_taught(form: str) -> None:
    routed = Routed(form)
    optimizer = torch.optim.AdamW(routed.net.parameters(), lr=0.1, weight_decay=0.1)
    with gr.watch(routed.net, optimizer, routed.router) as watcher:
        loss, later = deferred(routed, batch()[0])
        later.set(RETAIN)
        loss.backward()
        optimizer.step()
    moves = {move.target: move for move in watcher.report.moves}
    assert moves["encoder.weight"].units == (3, 4)
    assert moves["encoder.weight"].causes == ("weight decay",)


@pytest.mark.supports(f"{DEFERRED}: `optim.clip_grad_norm_per_route_`")
def test_each_route_is_clipped_by_its_own_norm(form: str) -> None:
    routed = Routed(form)
    x, labels = batch()
    norms = []
    for late in (False, True):
        routed.zero_grad()
        if late:
            loss, later = deferred(routed, x)
            later.set(labels)
        else:
            with routed.router(labels):
                loss = routed.module(x).square().sum()
        loss.backward()
        norms.append(gr.optim.clip_grad_norm_per_route_(routed.router, 0.1))
    assert norms[0] == norms[1]


# ---------------------------------------------------------------------- two processes


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory):
    return run_in_two_processes(SCRIPT, tmp_path_factory.mktemp("deferred") / "gradients.pt")


@pytest.mark.xdist_group("distributed")
@pytest.mark.supports(f"{DEFERRED}: DDP")
def test_two_processes_give_the_gradients_of_one_on_the_joined_batch(found, form: str, level: str) -> None:
    x, labels = batch(16)
    whole = expected(level, x, labels)
    scaled = Expected({name: gradient / len(x) for name, gradient in whole.items()}, getattr(whole, "closed", {}))
    assert_same(found[level][form], scaled, rtol=1e-4, atol=1e-5)
