"""Level "parameters" under every feature that sites on activations are tested with."""

import copy
import pickle
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint

import gradroute as gr
from composition.backends import EachBackend
from composition.forms import (
    BEFORE_2_10,
    BEFORE_2_12,
    SOFT,
    SPEC,
    WARNINGS_OF_TORCH,
    Routed,
    batch,
    functional_loss,
    label_kinds,
)
from composition.parameter_forms import expected, oracle, routed, sites
from composition.transforms import TRANSFORMS
from gradroute.testing import oracle_mask

pytestmark = [*WARNINGS_OF_TORCH, pytest.mark.long]

FORMS = pytest.mark.parametrize("form", ["router", "routed_module"])
SPECS = pytest.mark.parametrize("spec", [SPEC, SOFT], ids=["hard", "soft"])


def supports(feature: str) -> pytest.MarkDecorator:
    return pytest.mark.supports(f'level="parameters": {feature}', forms=["router", "routed_module"])


def check(found: dict[str, Tensor | None], wanted: dict[str, Tensor | None], **tolerance: float) -> None:
    torch.testing.assert_close(found, wanted, **({"rtol": 1e-4, "atol": 1e-5} | tolerance))


def test_a_lost_mask_would_be_seen() -> None:
    x, labels = batch()
    plain = Routed("oracle")
    plain.net(x).square().sum().backward()
    with pytest.raises(AssertionError):
        check(plain.gradients(), expected(x, labels))


@FORMS
@SPECS
@pytest.mark.parametrize("kind", ["ids", "multi_hot", "mixture"])
@supports("eager")
def test_eager(form: str, spec, kind: str) -> None:
    x, labels = batch()
    labels = label_kinds(labels)[kind]
    model = routed(form, spec)
    model(x, labels).square().sum().backward()
    check(model.gradients(), expected(x, labels, spec))


@FORMS
@supports("`torch.compile`: eager, fullgraph")
@supports("`torch.compile`: aot_eager, fullgraph")
@supports("`torch.compile`: inductor, fullgraph")
def test_compiled_without_recompiling(form: str) -> None:
    torch.compiler.reset()
    model = routed(form)
    backends = EachBackend("eager", "aot_eager", "inductor")
    compiled = torch.compile(model.module, backend=backends, fullgraph=True, dynamic=True)
    for n, seed in [(8, 0), (8, 1), (12, 2), (5, 3)]:
        x, labels = batch(n, seed)
        for _ in backends.each():
            model.zero_grad()
            model(x, labels, via=compiled).square().sum().backward()
            check(model.gradients(), expected(x, labels))
    # Before 2.10 the block that a `RoutedModule` begins is guarded on anew once.
    assert backends.traces == 1 + (BEFORE_2_10 and form == "routed_module")


@supports("`torch.compile`: routing off and on again")
@pytest.mark.parametrize("form", ["router"])
def test_switching_after_compiling(form: str) -> None:
    torch.compiler.reset()
    x, labels = batch()
    plain = Routed("oracle").net
    compiled = torch.compile(plain, backend="aot_eager", fullgraph=True)
    compiled(x).square().sum().backward()
    unrouted = {name: p.grad.clone() for name, p in plain.named_parameters()}
    router = gr.Router(plain, sites(SPEC))
    for _ in range(2):
        plain.zero_grad()
        with router(labels):
            compiled(x).square().sum().backward()
        check({name: p.grad for name, p in plain.named_parameters()}, expected(x, labels))
    router.remove()
    plain.zero_grad()
    compiled(x).square().sum().backward()
    check({name: p.grad for name, p in plain.named_parameters()}, unrouted)


@FORMS
@SPECS
@pytest.mark.parametrize(
    "transform", [pytest.param(t, id=name, marks=supports(f"`torch.func`: {name}")) for name, t in TRANSFORMS.items()]
)
def test_transforms(form: str, transform, spec) -> None:
    x, labels = batch()
    found = transform(*functional_loss(routed(form, spec)), x, labels)
    wanted = transform(*functional_loss(oracle(spec)), x, labels)
    torch.testing.assert_close(tree_leaves(found), tree_leaves(wanted), rtol=1e-4, atol=1e-4)


@FORMS
@pytest.mark.parametrize(
    "transform",
    [pytest.param(t, id=name, marks=supports(f"`torch.compile({name}(f))`")) for name, t in TRANSFORMS.items()],
)
def test_compiled_transforms(form: str, transform) -> None:
    torch.compiler.reset()
    x, labels = batch()
    loss, params = functional_loss(routed(form))
    compiled = torch.compile(lambda *args: transform(loss, *args), backend="aot_eager", fullgraph=True)
    wanted = transform(*functional_loss(oracle()), x, labels)
    torch.testing.assert_close(tree_leaves(compiled(params, x, labels)), tree_leaves(wanted), rtol=1e-4, atol=1e-4)


@FORMS
@SPECS
@supports("double backward (`create_graph=True`)")
def test_double_backward(form: str, spec) -> None:
    x, labels = batch()
    second = []
    for model in (routed(form, spec), oracle(spec)):
        loss = model(x, labels).square().sum()
        gradients = torch.autograd.grad(loss, list(model.net.parameters()), create_graph=True)
        sum(gradient.square().sum() for gradient in gradients).backward()
        second.append(model.gradients())
    check(*second, rtol=1e-3, atol=1e-3)


@FORMS
@supports("`torch.autograd.grad(is_grads_batched=True)`")
def test_batched_gradients(form: str) -> None:
    x, labels = batch()
    rows = []
    for model in (routed(form), oracle()):
        y = model(x, labels)
        directions = torch.eye(y.numel()).view(-1, *y.shape)
        rows.append(torch.autograd.grad(y, list(model.net.parameters()), directions, is_grads_batched=True))
    torch.testing.assert_close(*rows, rtol=1e-4, atol=1e-5)


@FORMS
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@supports("autocast, bfloat16 and float16")
def test_autocast(form: str, dtype: torch.dtype) -> None:
    x, labels = batch()
    found = []
    for model in (routed(form), oracle()):
        with torch.autocast("cpu", dtype=dtype):
            y = model(x, labels)
        assert y.dtype == dtype
        y.float().square().sum().backward()
        assert all(p.grad.dtype == torch.float32 for p in model.net.parameters())
        found.append(model.gradients())
    check(*found, rtol=0.05, atol=0.1)


@FORMS
@supports("autocast: a weight that a routed and an unrouted pass share")
def test_the_weights_that_autocast_keeps_have_a_graph(form: str) -> None:
    x, labels = batch()
    model = routed(form)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = model(x, labels)
        again = F.linear(x, model.net.encoder.weight)
    again.float().sum().backward()
    assert model.net.encoder.weight.grad.any()
    del y


@FORMS
@pytest.mark.parametrize("reentrant", [False, True], ids=["non-reentrant", "reentrant"])
@supports("activation checkpointing")
def test_checkpointing(form: str, reentrant: bool) -> None:
    x, labels = batch()
    model = routed(form)

    def run(x: Tensor, **kwargs: Tensor) -> Tensor:
        return checkpoint(partial(model.module, **kwargs), x.requires_grad_(), use_reentrant=reentrant)

    with model.block(labels):
        model.call(run, x, labels).square().sum().backward()
    check(model.gradients(), expected(x.detach(), labels))


@FORMS
@supports("non-reentrant checkpointing, backward outside of the block")
def test_checkpointing_with_backward_outside(form: str) -> None:
    x, labels = batch()
    model = routed(form)

    def run(x: torch.Tensor, *args, **kwargs) -> torch.Tensor:
        return checkpoint(partial(model.module, **kwargs), x.requires_grad_(), *args, use_reentrant=False)

    model(x, labels, via=run).square().sum().backward()
    check(model.gradients(), expected(x.detach(), labels))


@pytest.mark.refuses(
    'level="parameters": reentrant checkpointing, backward outside of the block', "UsageError", forms=["router"]
)
def test_reentrant_checkpointing_with_backward_outside_raises() -> None:
    x, labels = batch()
    model = routed("router")
    with model.router(labels):
        y = checkpoint(model.module, x.requires_grad_(), use_reentrant=True)
    with pytest.raises(gr.RoutingError, match="backward inside the same"):
        y.square().sum().backward()


@FORMS
@supports("several forwards before one backward")
def test_accumulation(form: str) -> None:
    batches = [batch(seed=seed) for seed in range(3)]
    model = routed(form)
    sum(model(x, labels).square().sum() for x, labels in batches).backward()
    each = [expected(x, labels) for x, labels in batches]
    check(model.gradients(), {name: sum(one[name] for one in each) for name in each[0]})


@FORMS
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda value: pickle.loads(pickle.dumps(value))])
@supports("deepcopy and pickle")
def test_copies(form: str, copied) -> None:
    (x, labels), (_, others) = batch(), batch(seed=1)
    model = routed(form)
    twin = Routed.__new__(Routed)
    twin.form = form
    twin.net, twin.module, twin.router = copied((model.net, model.module, model.router))
    with model.block(others):
        twin(x, labels).square().sum().backward()
    check(twin.gradients(), expected(x, labels))
    assert all(gradient is None for gradient in model.gradients().values())
    twin.router.remove()
    assert not any("forward" in module.__dict__ for module in twin.net.modules())
    model(x, others).square().sum().backward()
    check(model.gradients(), expected(x, others))


@pytest.mark.refuses('level="parameters": a copy without its router, trained', "UsageError", forms=["router"])
def test_a_stray_copy_refuses_to_train_and_takes_a_new_router() -> None:
    x, labels = batch()
    twin = copy.deepcopy(routed("router").net)
    with pytest.raises(gr.RoutingError, match="copy of a routed model"):
        twin(x)
    with gr.Router(twin, sites(SPEC))(labels):
        twin(x).square().sum().backward()
    check({name: p.grad for name, p in twin.named_parameters()}, expected(x, labels))


@FORMS
@supports("`torch.export` in evaluation: no trace of routing")
def test_export(form: str) -> None:
    x, _ = batch()
    programs = [torch.export.export(m.eval(), (x,)) for m in (routed(form).module, Routed("oracle").net)]
    operators = [[str(n.target) for n in p.graph.nodes if n.op == "call_function"] for p in programs]
    assert operators[0] == operators[1]


@FORMS
@pytest.mark.parametrize("strict", [False, True])
def test_exporting_with_labels_and_gradients_raises(form: str, strict: bool) -> None:
    x, labels = batch()
    model = routed(form)
    kwargs = {"route_labels": labels} if form == "routed_module" else {}
    reason = None if BEFORE_2_12 else "no backward of its own"  # as in test_export
    with model.block(labels), pytest.raises(Exception, match=reason):
        torch.export.export(model.module, (x,), kwargs, strict=strict)


@supports("frozen parameters, `torch.no_grad`")
@FORMS
def test_what_does_not_learn_runs_as_it_is(form: str) -> None:
    x, labels = batch()
    model = routed(form)
    model.net.encoder.requires_grad_(False)
    model(x, labels).square().sum().backward()
    assert model.net.encoder.weight.grad is None
    wanted = expected(x, labels)
    check({"decoder.weight": model.net.decoder.weight.grad}, {"decoder.weight": wanted["decoder.weight"]})
    with torch.no_grad():
        assert torch.equal(model(x, labels), Routed("oracle").net(x))


@supports("ablated units, in training too")
@FORMS
def test_ablation(form: str) -> None:
    x, labels = batch()
    model = routed(form)
    off = Routed("oracle").net
    with torch.no_grad():
        off.decoder.weight[:, 3:5] = 0  # sites on both ends: z is 0 where it is written and where it is read
    with model.router.ablated("forget"):
        torch.testing.assert_close(model(x, labels), off(x))


def test_a_module_that_is_called_in_another_way_is_still_routed() -> None:
    """Forward called directly goes past hooks, but not past what stands in for forward."""
    x, labels = batch()
    layer = nn.Linear(5, 6)
    with gr.Router(layer, {"": gr.Site(SPEC, level="parameters")})(labels):
        layer.forward(x).sum().backward()
    torch.testing.assert_close(layer.bias.grad, oracle_mask(SPEC, labels).sum(0))
