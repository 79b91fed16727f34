"""`Isolation` with what else drives an optimizer: AMP, accumulation, compiled code, checkpointing, other processes."""

import copy
import functools
import itertools
from pathlib import Path

import pytest
import torch

from composition.forms import WARNINGS_OF_TORCH, Routed, batch, functional_loss, label_kinds
from composition.isolation import (
    ALL_UNITS,
    FORGET,
    RETAIN,
    UNITS_OF_FORGET,
    UNITS_OF_RETAIN,
    UNLABELED,
    backward,
    entries,
    isolated,
    moved,
    units_that_differ,
)
from composition.two_processes import run_in_two_processes
from gradroute.optim import Isolation

pytestmark = [*WARNINGS_OF_TORCH, pytest.mark.long, pytest.mark.parametrize("form", ["router", "routed_module"])]

SCRIPT = Path(__file__).parent / "scripts" / "isolated.py"


@pytest.fixture
def running(form: str):
    """The same after a step that taught all units, so that there is momentum."""
    routed, optimizer, isolation = isolated(form)
    backward(routed, UNLABELED)
    optimizer.step()
    optimizer.zero_grad()
    return routed, optimizer, isolation


@pytest.mark.supports("`optim.Isolation`")
def test_units_that_no_example_of_the_step_may_teach_stay(running) -> None:
    routed, optimizer, _ = running
    for labels, expected in ((RETAIN, UNITS_OF_RETAIN), (FORGET, UNITS_OF_FORGET), (UNLABELED, ALL_UNITS)):
        optimizer.zero_grad()
        backward(routed, labels)
        assert moved(routed, optimizer, optimizer.step) == expected


@pytest.mark.supports("`optim.Isolation`: accumulation")
def test_micro_batches_add_up_and_a_clipped_spike_changes_nothing(running) -> None:
    routed, optimizer, _ = running
    backward(routed, RETAIN, seed=1)
    backward(routed, RETAIN, seed=2)
    torch.nn.utils.clip_grad_norm_(routed.net.parameters(), 1e-3)
    assert moved(routed, optimizer, optimizer.step) == UNITS_OF_RETAIN
    optimizer.zero_grad()
    backward(routed, RETAIN, seed=1)
    backward(routed, FORGET, seed=2)
    assert moved(routed, optimizer, optimizer.step) == ALL_UNITS


@pytest.mark.supports("`optim.Isolation`: `GradScaler`")
@pytest.mark.parametrize("fused", [False, True], ids=["", "fused"])
def test_a_scaler_that_skips_a_step_leaves_everything_and_what_was_taught_can_be_discarded(
    form: str, fused: bool
) -> None:
    """A fused optimizer is called even so, and the isolation sees that the batch is over."""
    routed, optimizer, isolation = isolated(form, fused=fused)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**4)

    def step(labels: torch.Tensor, spike: float = 1.0) -> None:
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = routed(batch(8)[0], labels).float().square().sum()
        scaler.scale(loss * spike).backward()
        scale = scaler.get_scale()
        scaler.step(optimizer)
        scaler.update()
        if scaler.get_scale() < scale and not fused:
            isolation.discard()

    step(UNLABELED)
    assert moved(routed, optimizer, lambda: step(RETAIN)) == UNITS_OF_RETAIN
    assert moved(routed, optimizer, lambda: step(FORGET, spike=float("inf"))) == []
    assert moved(routed, optimizer, lambda: step(RETAIN)) == UNITS_OF_RETAIN


@pytest.mark.supports("`optim.Isolation`: `GradScaler`")
def test_what_a_skipped_step_taught_counts_for_the_next_if_it_is_not_discarded(running) -> None:
    routed, optimizer, _ = running
    backward(routed, FORGET)  # and the scaler skips the step
    optimizer.zero_grad()
    backward(routed, RETAIN)
    assert moved(routed, optimizer, optimizer.step) == ALL_UNITS


@pytest.mark.supports("`optim.Isolation`: `torch.compile`")
@pytest.mark.parametrize("what", ["model", "step", "model and step"])
def test_compiled_code_holds_what_each_step_leaves_untaught(form: str, what: str) -> None:
    torch.compiler.reset()
    routed, optimizer, _ = isolated(form, foreach=True)

    def run(labels: torch.Tensor) -> None:
        backward(routed, labels, via=model)

    def step() -> None:
        optimizer.step()

    model = torch.compile(routed.module, backend="aot_eager") if "model" in what else routed.module
    step = torch.compile(step, backend="aot_eager") if "step" in what else step
    run(UNLABELED)
    step()
    for labels, expected in ((RETAIN, UNITS_OF_RETAIN), (FORGET, UNITS_OF_FORGET), (RETAIN, UNITS_OF_RETAIN)):
        optimizer.zero_grad()
        run(labels)
        assert moved(routed, optimizer, step) == expected


@pytest.mark.supports("`optim.Isolation`: `torch.compile`")
def test_a_whole_compiled_training_step_holds_what_it_leaves_untaught(form: str) -> None:
    torch.compiler.reset()
    routed, optimizer, _ = isolated(form)

    @torch.compile(backend="aot_eager")
    def step(x: torch.Tensor, labels: torch.Tensor) -> None:
        routed(x, labels).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()

    x, _ = batch(8)
    step(x, UNLABELED)
    for labels, expected in ((RETAIN, UNITS_OF_RETAIN), (FORGET, UNITS_OF_FORGET), (RETAIN, UNITS_OF_RETAIN)):
        assert moved(routed, optimizer, lambda labels=labels: step(x, labels)) == expected


@pytest.mark.supports("`optim.Isolation`: `torch.compile`")
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
class TestBlocksThatGoOnAfterAStep:
    """What was noted when the block began was forgotten by the step: each pass notes it again."""

    @pytest.fixture
    def run(self, form: str, compiled: bool):
        """A network in which all units have momentum, its optimizer, and what calls it."""
        torch.compiler.reset()
        routed, optimizer, _ = isolated(form)
        via = torch.compile(routed.module, backend="aot_eager") if compiled else routed.module
        backward(routed, UNLABELED, via=via)
        optimizer.step()
        optimizer.zero_grad()
        return routed, optimizer, lambda labels: routed.call(via, batch(8)[0], labels).square().sum()

    @pytest.mark.parametrize("where", ["in the block", "after it", "after it, not zeroed"])
    def test_a_second_pass_counts_for_the_step_after_the_block(self, run, where: str) -> None:
        routed, optimizer, loss = run
        with routed.block(FORGET):
            loss(FORGET).backward()
            assert moved(routed, optimizer, optimizer.step) == UNITS_OF_FORGET
            if "not zeroed" not in where:
                optimizer.zero_grad()
            second = loss(FORGET)
            if where == "in the block":
                second.backward()
        if where != "in the block":
            second.backward()
        assert moved(routed, optimizer, optimizer.step) == UNITS_OF_FORGET

    @pytest.mark.parametrize("set_to_none", [True, False])
    @pytest.mark.parametrize("zeroed", ["in the block", "after it", "in the next"])
    def test_a_block_whose_last_pass_was_before_its_step_does_not_count_for_the_next(
        self, run, zeroed: str, set_to_none: bool
    ) -> None:
        """Labels decide, not gradients: the penalty gives all units some."""
        routed, optimizer, loss = run
        for labels, expected in ((FORGET, UNITS_OF_FORGET), (RETAIN, UNITS_OF_RETAIN), (FORGET, UNITS_OF_FORGET)):
            with routed.block(labels):
                if zeroed == "in the next":
                    optimizer.zero_grad(set_to_none=set_to_none)
                penalty = sum(parameter.square().sum() for parameter in routed.net.parameters())
                (loss(labels) + penalty).backward()
                assert moved(routed, optimizer, optimizer.step) == expected
                if zeroed == "in the block":
                    optimizer.zero_grad(set_to_none=set_to_none)
            if zeroed == "after it":
                optimizer.zero_grad(set_to_none=set_to_none)

    def test_a_block_inside_another_counts_for_itself(self, run) -> None:
        routed, optimizer, loss = run
        with routed.block(FORGET):
            loss(FORGET).backward()
            optimizer.step()
            optimizer.zero_grad()
            with routed.block(RETAIN):
                loss(RETAIN).backward()
        assert moved(routed, optimizer, optimizer.step) == UNITS_OF_RETAIN
        optimizer.zero_grad()
        with routed.block(FORGET):
            with routed.block(RETAIN):
                loss(RETAIN).backward()
                optimizer.step()
                optimizer.zero_grad()
            loss(FORGET).backward()
        assert moved(routed, optimizer, optimizer.step) == UNITS_OF_FORGET


@pytest.mark.supports("`optim.Isolation`: activation checkpointing")
@pytest.mark.parametrize("use_reentrant", [False, True], ids=["", "reentrant"])
def test_recomputation_teaches_nothing_new(running, use_reentrant: bool) -> None:
    routed, optimizer, _ = running
    x, _ = batch(8)
    with routed.block(RETAIN):
        out = torch.utils.checkpoint.checkpoint(
            lambda x: routed.call(routed.module, x, RETAIN), x.requires_grad_(), use_reentrant=use_reentrant
        )
        out.square().sum().backward()
    assert moved(routed, optimizer, optimizer.step) == UNITS_OF_RETAIN


@pytest.mark.supports("`optim.Isolation`: activation checkpointing")
def test_recomputation_after_the_block_is_no_unrouted_pass(form: str) -> None:
    """Level "activations", since level "parameters" wants the block around backward too."""
    routed = Routed(form)
    optimizer = torch.optim.AdamW(routed.net.encoder.parameters(), lr=0.1, weight_decay=0.1)
    Isolation(routed.router, optimizer)
    x, _ = batch(8)
    for labels, expected in ((UNLABELED, ALL_UNITS), (RETAIN, UNITS_OF_RETAIN), (FORGET, UNITS_OF_FORGET)):
        optimizer.zero_grad()
        run = functools.partial(routed.call, routed.module, labels=labels)
        with routed.block(labels):
            out = torch.utils.checkpoint.checkpoint(run, x.requires_grad_(), use_reentrant=False)
        out.square().sum().backward()
        assert moved(routed, optimizer, optimizer.step) == expected


@pytest.mark.supports("`optim.Isolation`: `torch.func.grad`")
def test_gradients_of_torch_func_are_noted(running) -> None:
    routed, optimizer, _ = running
    loss, params = functional_loss(routed)
    x, _ = batch(8)
    for labels, expected in ((RETAIN, UNITS_OF_RETAIN), (FORGET, UNITS_OF_FORGET)):
        gradients = torch.func.grad(loss)(params, x, labels)
        for name, parameter in routed.module.named_parameters():
            parameter.grad = gradients[name].detach()
        assert moved(routed, optimizer, optimizer.step) == expected


@pytest.mark.supports("`optim.Isolation`: `torch.func.vmap` of `grad`")
@pytest.mark.parametrize("kind", ["ids", "multi_hot"])
def test_gradients_for_each_example_are_noted(running, kind: str) -> None:
    routed, optimizer, _ = running
    loss, params = functional_loss(routed)
    x, _ = batch(8)
    for labels, expected in ((RETAIN, UNITS_OF_RETAIN), (FORGET, UNITS_OF_FORGET)):
        rows = label_kinds(labels)[kind]
        rows, dim = (rows, 0) if kind == "ids" else (rows.T, 1)  # a batch dimension that is not the first
        each = torch.func.vmap(lambda x, row: torch.func.grad(loss)(params, x[None], row[None]), (0, dim))
        gradients = each(x, rows)
        for name, parameter in routed.module.named_parameters():
            parameter.grad = gradients[name].sum(0)
        assert moved(routed, optimizer, optimizer.step) == expected


@pytest.mark.refuses(
    "`optim.Isolation`: `torch.compile` of `torch.func.grad`, the block inside", "no side effects there"
)
def test_a_record_cannot_be_written_inside_compiled_gradients(form: str) -> None:
    """With the block outside it compiles."""
    routed, _, _ = isolated(form)
    loss, params = functional_loss(routed)
    compiled = torch.compile(torch.func.grad(loss), backend="aot_eager", fullgraph=True)
    with pytest.raises((torch._dynamo.exc.Unsupported, torch._dynamo.exc.TorchRuntimeError)):
        compiled(params, batch(8)[0], RETAIN)


@pytest.mark.xfail(
    torch.__version__ < "2.14",
    raises=torch._dynamo.exc.TorchRuntimeError,
    reason="torch 2.13 takes it for an error of the user's, and does not fall back",
)
def test_without_fullgraph_a_record_is_written_in_eager_mode(form: str) -> None:
    routed, optimizer, _ = isolated(form)
    loss, params = functional_loss(routed)
    x, _ = batch(8)
    gradients = torch.compile(torch.func.grad(loss), backend="aot_eager")(params, x, RETAIN)
    for name, parameter in routed.module.named_parameters():
        parameter.grad = gradients[name].detach()
    assert moved(routed, optimizer, optimizer.step) == UNITS_OF_RETAIN


@pytest.mark.supports("`optim.Isolation`: an optimizer for each parameter, in backward")
def test_steps_taken_in_backward_hold_what_the_block_leaves_untaught(form: str) -> None:
    routed, _, isolation = isolated(form)
    isolation.remove()
    owned = [routed.net.encoder.weight, routed.net.encoder.bias, routed.net.decoder.weight]
    optimizers = {parameter: torch.optim.AdamW([parameter], lr=0.1, weight_decay=0.1) for parameter in owned}

    def step(parameter: torch.Tensor) -> None:
        optimizers[parameter].step()
        optimizers[parameter].zero_grad()

    for parameter, optimizer in optimizers.items():
        Isolation(routed.router, optimizer)
        parameter.register_post_accumulate_grad_hook(step)
    for labels, expected in ((UNLABELED, ALL_UNITS), (RETAIN, UNITS_OF_RETAIN), (FORGET, UNITS_OF_FORGET)):
        before = [parameter.detach().clone() for parameter in owned]
        backward(routed, labels)
        for parameter, old, dim in zip(owned, before, (0, 0, 1), strict=True):
            differ = (parameter != old).movedim(dim, 0).reshape(len(ALL_UNITS), -1).any(1)
            assert differ.nonzero().flatten().tolist() == expected


@pytest.mark.supports("`optim.Isolation`: learning rate schedules")
def test_a_schedule_that_wraps_the_step_goes_through_the_isolation(running) -> None:
    routed, optimizer, _ = running
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
    for labels, expected in ((RETAIN, UNITS_OF_RETAIN), (FORGET, UNITS_OF_FORGET)):
        optimizer.zero_grad()
        backward(routed, labels)
        assert moved(routed, optimizer, optimizer.step) == expected
        schedule.step()


@pytest.mark.supports("`optim.Isolation`: a copy of model, router and optimizer")
def test_a_copy_of_all_is_isolated_anew(running) -> None:
    routed, optimizer, _ = running
    twin, twin_optimizer = copy.deepcopy((routed, optimizer))
    Isolation(twin.router, twin_optimizer)
    backward(twin, RETAIN)
    assert moved(twin, twin_optimizer, twin_optimizer.step) == UNITS_OF_RETAIN
    backward(routed, FORGET)
    assert moved(routed, optimizer, optimizer.step) == UNITS_OF_FORGET


@pytest.fixture(scope="module")
def in_two_processes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, list[dict[str, torch.Tensor]]]]:
    """What each step leaves, for each strategy and form: all in one start of two processes."""
    return run_in_two_processes(SCRIPT, tmp_path_factory.mktemp("isolated") / "steps.pt")


@pytest.mark.xdist_group("distributed")
@pytest.mark.parametrize(
    "strategy",
    [
        pytest.param("ddp", marks=pytest.mark.supports("`optim.Isolation`: DDP")),
        pytest.param("fsdp2", marks=pytest.mark.supports("`optim.Isolation`: FSDP2")),
    ],
)
def test_what_any_process_teaches_is_taught_on_all_and_the_steps_are_those_of_one_process(
    in_two_processes, form: str, strategy: str
) -> None:
    steps = in_two_processes[strategy][form]
    assert [units_that_differ(*pair) for pair in itertools.pairwise(steps)] == [
        ALL_UNITS,
        UNITS_OF_RETAIN,
        UNITS_OF_FORGET,
        ALL_UNITS,
    ]
    routed, optimizer, _ = isolated(form)
    joined = [(RETAIN, RETAIN), (UNLABELED, RETAIN), (RETAIN, RETAIN), (FORGET, FORGET), (RETAIN, FORGET)]
    for number, labels in enumerate(joined):
        optimizer.zero_grad()
        x = batch(16, seed=number)[0]
        (routed(x, torch.cat(labels)).square().sum() / len(x)).backward()
        optimizer.step()
        torch.testing.assert_close(steps[number], entries(routed, optimizer), rtol=1e-3, atol=1e-5)
