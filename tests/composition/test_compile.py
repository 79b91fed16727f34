"""torch.compile: the compiled gradient is the oracle's, and what changes from batch to batch does not recompile."""

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from composition.backends import EachBackend
from composition.forms import (
    SOFT,
    SPEC,
    WARNINGS_OF_TORCH,
    Routed,
    assert_backward_routes,
    assert_same,
    batch,
    expected_gradients,
    label_kinds,
)

pytestmark = [*WARNINGS_OF_TORCH, pytest.mark.long]

BACKENDS = ["eager", "aot_eager", "inductor"]


@pytest.fixture(autouse=True)
def fresh_compiler() -> None:
    torch.compiler.reset()


@pytest.mark.supports("`torch.compile`: eager, fullgraph")
@pytest.mark.supports("`torch.compile`: aot_eager, fullgraph")
@pytest.mark.supports("`torch.compile`: inductor, fullgraph")
def test_new_labels_and_batch_sizes_route_without_recompiling(routed: Routed) -> None:
    backends = EachBackend(*BACKENDS)
    compiled = torch.compile(routed.module, backend=backends, fullgraph=True, dynamic=True)
    for n, seed in [(8, 0), (8, 1), (12, 2), (5, 3)]:
        for _ in backends.each():
            assert_backward_routes(routed, lambda x, labels: routed(x, labels, via=compiled), *batch(n, seed))
    assert backends.traces == 1


@pytest.mark.supports("`torch.compile`: static shapes")
def test_with_static_shapes_new_labels_do_not_recompile(routed: Routed) -> None:
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(routed.module, backend=counter, fullgraph=True, dynamic=False)
    for seed in range(3):
        assert_backward_routes(routed, lambda x, labels: routed(x, labels, via=compiled), *batch(8, seed))
    assert counter.frame_count == 1


@pytest.mark.supports("`torch.compile`: multi-hot and mixture labels, soft masks")
@pytest.mark.parametrize("spec", [SPEC, SOFT], ids=["hard", "soft"])
@pytest.mark.parametrize("kind", ["multi_hot", "mixture"])
def test_every_kind_of_label_routes(form: str, spec, kind: str) -> None:
    routed = Routed(form, spec=spec)
    compiled = torch.compile(routed.module, backend="aot_eager", fullgraph=True)
    x, labels = batch()
    assert_backward_routes(routed, lambda x, labels: routed(x, labels, via=compiled), x, label_kinds(labels)[kind])


@pytest.mark.supports("`torch.compile`: the whole training step")
def test_a_compiled_training_step_moves_parameters_as_the_oracle_does(routed: Routed) -> None:
    def train(model: Routed, transform) -> dict[str, torch.Tensor]:
        optimizer = torch.optim.SGD(model.net.parameters(), lr=0.1, momentum=0.9)

        def step(x: torch.Tensor, labels: torch.Tensor) -> None:
            model(x, labels).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()

        step = transform(step)
        for seed in range(3):
            step(*batch(8, seed))
        return model.net.state_dict()

    expected = train(Routed("oracle"), lambda step: step)
    assert_same(train(routed, torch.compile(backend="aot_eager")), expected)


@pytest.mark.supports("`torch.compile`: a method other than forward")
def test_a_compiled_method_other_than_forward_routes(routed: Routed) -> None:
    x, labels = batch()
    compiled = torch.compile(routed.module.loss, backend="aot_eager", fullgraph=True)
    if routed.form == "functional":
        compiled(x, labels).backward()
    else:
        with routed.router(labels):
            compiled(x).backward()
    assert_same(routed.gradients(), expected_gradients(x, labels))


@pytest.mark.supports("`torch.compile`: `module.compile()` in place")
def test_a_module_compiled_in_place_routes(routed: Routed) -> None:
    routed.module.compile(backend="aot_eager", fullgraph=True)
    assert_backward_routes(routed, routed, *batch())


@pytest.mark.supports("`torch.compile`: one submodule only")
def test_a_compiled_submodule_routes(routed: Routed) -> None:
    routed.net.encoder.compile(backend="aot_eager")
    for seed in range(2):
        assert_backward_routes(routed, routed, *batch(seed=seed))


@pytest.mark.supports("`torch.compile`: compiled autograd")
@pytest.mark.filterwarnings(  # from Python 3.12 on, of the standard library: torch looks at its own module with it
    "ignore:Dynamo detected a call to a `functools.lru_cache`-wrapped function at 'inspect.py:UserWarning"
)
def test_compiled_autograd_follows_the_labels_of_each_step(routed: Routed) -> None:
    with torch._dynamo.config.patch(compiled_autograd=True):
        backward = torch.compile(lambda loss: loss.backward(), backend="aot_eager")
        for seed in range(3):
            routed.zero_grad()
            x, labels = batch(seed=seed)
            backward(routed(x, labels).square().sum())
            assert_same(routed.gradients(), expected_gradients(x, labels))


@pytest.mark.supports("`torch.compile`: an unknown label raises", forms=["functional"])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("label", [2, 7, -2])
def test_an_unknown_label_in_compiled_code_raises(backend: str, label: int) -> None:
    routed = Routed("functional")
    compiled = torch.compile(routed.module, backend=backend, fullgraph=True, dynamic=True)
    x, labels = batch()
    compiled(x, labels)
    labels[3] = label
    with pytest.raises((IndexError, RuntimeError), match="out of (range|bounds)"):  # inductor looks in backward
        compiled(x, labels).sum().backward()
