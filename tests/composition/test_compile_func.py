"""torch.compile around torch.func, and inside it: where a plain autograd Function loses its backward without a word."""

import subprocess
import sys

import pytest
import torch
from torch.utils._pytree import tree_leaves

from composition.backends import EachBackend
from composition.forms import BEFORE_2_12, WARNINGS_OF_TORCH, Routed, batch, functional_loss
from composition.transforms import TRANSFORMS

pytestmark = [*WARNINGS_OF_TORCH, pytest.mark.long]


@pytest.fixture(autouse=True)
def fresh_compiler() -> None:
    torch.compiler.reset()


FORWARD_MODE = ("jvp", "jacfwd")


def cases(feature: str, *, without: tuple[str, ...] = ()) -> list[object]:
    return [
        pytest.param(transform, id=name, marks=pytest.mark.supports(feature.format(name)))
        for name, transform in TRANSFORMS.items()
        if name not in without
    ]


@pytest.mark.parametrize("transform", cases("`torch.compile({}(f))`"))
def test_a_compiled_transform_is_that_of_the_oracle(routed: Routed, transform) -> None:
    loss, params = functional_loss(routed)
    backends = EachBackend("eager", "aot_eager")
    compiled = torch.compile(
        lambda params, x, labels: transform(loss, params, x, labels), backend=backends, fullgraph=True
    )
    for seed in range(2):
        x, labels = batch(seed=seed)
        expected = transform(*functional_loss(Routed("oracle")), x, labels)
        for backend in backends.each():
            found = compiled(params, x, labels)
            torch.testing.assert_close(
                tree_leaves(found), tree_leaves(expected), msg=lambda text, backend=backend: f"{backend}: {text}"
            )


@pytest.mark.parametrize("transform", cases("`{}(torch.compile(f))`: backend eager", without=FORWARD_MODE))
def test_a_transform_of_a_compiled_loss_is_that_of_the_oracle(routed: Routed, transform) -> None:
    loss, params = functional_loss(routed)
    compiled = torch.compile(loss, backend="eager", fullgraph=True)
    x, labels = batch()
    expected = transform(*functional_loss(Routed("oracle")), x, labels)
    torch.testing.assert_close(tree_leaves(transform(compiled, params, x, labels)), tree_leaves(expected))


@pytest.mark.refuses("`jvp` and `jacfwd` of `torch.compile(f)`: backend eager", "not supported by PyTorch")
@pytest.mark.parametrize("name", FORWARD_MODE)
def test_forward_mode_of_a_compiled_loss_is_refused_by_dynamo(routed: Routed, name: str) -> None:
    loss, params = functional_loss(routed)
    compiled = torch.compile(loss, backend="eager", fullgraph=True)
    reason = None if BEFORE_2_12 else "meta conversion to view functorch tensor"
    with pytest.raises(torch._dynamo.exc.Unsupported, match=reason):
        TRANSFORMS[name](compiled, params, *batch())


@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS)
@pytest.mark.refuses("`torch.func` of `torch.compile(f)`: backends aot_eager and inductor", "not supported by PyTorch")
def test_a_transform_of_an_aot_compiled_loss_is_refused_by_dynamo(routed: Routed, transform) -> None:
    loss, params = functional_loss(routed)
    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
    with pytest.raises(torch._dynamo.exc.Unsupported, match="Unsupported functorch tracing attempt"):
        transform(compiled, params, *batch())


@pytest.mark.supports("`torch.compile(vmap(grad(f)))`: inductor")
def test_per_example_gradients_compiled_by_inductor_are_those_of_the_oracle(routed: Routed) -> None:
    loss, params = functional_loss(routed)
    transform = TRANSFORMS["vmap(grad)"]
    compiled = torch.compile(lambda params, x, labels: transform(loss, params, x, labels), fullgraph=True)
    x, labels = batch()
    expected = transform(*functional_loss(Routed("oracle")), x, labels)
    torch.testing.assert_close(tree_leaves(compiled(params, x, labels)), tree_leaves(expected))


FIRST_OF_ALL = """
import os, sys, torch, gradroute as gr
spec = gr.RoutingSpec.one_per_label(3)
x, labels = torch.ones(2, 3), torch.tensor([2, 0])
gradient = torch.func.grad(lambda x, labels: gr.route(x, labels, spec).sum())
for transformed in (gradient, torch.vmap(gradient)):
    assert "torch._dynamo" not in sys.modules
    if os.fork():  # each in a process of its own, in which nothing has been compiled
        assert os.wait()[1] == 0
        continue
    found = torch.compile(transformed, backend="eager", fullgraph=True)(x, labels)
    from gradroute.testing import oracle_mask
    assert torch.equal(found, oracle_mask(spec, labels)), found
    break
"""


def test_the_first_thing_a_process_compiles_routes() -> None:
    """Nothing may depend on what an earlier compilation has registered: not `grad`, and not `vmap` of it."""
    result = subprocess.run([sys.executable, "-c", FIRST_OF_ALL], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
