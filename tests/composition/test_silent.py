"""Silent units under every feature: what is off stays off in each forward pass, and its gradient is 0 in each backward."""

import contextlib
import copy
import pickle
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint

import gradroute as gr
from composition import parameter_forms
from composition.backends import EachBackend
from composition.forms import (
    BEFORE_2_10,
    BEFORE_2_12,
    FORMS,
    SILENT,
    SOFT,
    WARNINGS_OF_TORCH,
    Routed,
    batch,
    functional_loss,
    label_kinds,
)
from composition.transforms import TRANSFORMS

pytestmark = [*WARNINGS_OF_TORCH, pytest.mark.long]

SOFT_SILENT = gr.RoutingSpec(SOFT.routes, SOFT.width, silent={"retain": "forget", gr.UNLABELED: "others"})
SPECS = pytest.mark.parametrize("spec", [SILENT, SOFT_SILENT], ids=["hard", "soft"])
#: In which form, and at which level. The functional form has one.
WAYS = [("functional", "activations"), *((f, level) for f in FORMS[1:] for level in ("activations", "parameters"))]
ways = pytest.mark.parametrize(("form", "level"), WAYS, ids=["-".join(way) for way in WAYS])


def supports(feature: str) -> pytest.MarkDecorator:
    return pytest.mark.supports(f"silent units: {feature}")


def made(form: str, level: str, spec: gr.RoutingSpec = SILENT) -> Routed:
    return Routed(form, spec=spec) if level == "activations" else parameter_forms.routed(form, spec)


def oracle(level: str, spec: gr.RoutingSpec = SILENT) -> Routed:
    return Routed("oracle", spec=spec) if level == "activations" else parameter_forms.oracle(spec)


def expected(x: Tensor, labels: Tensor, level: str, spec: gr.RoutingSpec = SILENT) -> dict[str, Tensor | None]:
    model = oracle(level, spec)
    model(x, labels).square().sum().backward()
    return model.gradients()


def check(found: dict[str, Tensor | None], wanted: dict[str, Tensor | None], **tolerance: float) -> None:
    torch.testing.assert_close(found, wanted, **({"rtol": 1e-4, "atol": 1e-5} | tolerance))


@pytest.mark.parametrize("level", ["activations", "parameters"])
def test_silence_that_is_lost_would_be_seen(level: str) -> None:
    x, labels = batch()
    loud = gr.RoutingSpec(SILENT.routes, SILENT.width, shared=SILENT.shared)
    with pytest.raises(AssertionError):
        torch.testing.assert_close(oracle(level)(x, labels), oracle(level, loud)(x, labels))
    with pytest.raises(AssertionError):
        check(expected(x, labels, level), expected(x, labels, level, loud))


@ways
@SPECS
@pytest.mark.parametrize("kind", ["ids", "multi_hot", "mixture"])
@supports("eager")
def test_eager(form: str, level: str, spec, kind: str) -> None:
    x, labels = batch()
    labels = label_kinds(labels)[kind]
    if kind == "mixture":
        labels = torch.where(labels == 0.25, 0, labels)  # so that some have one label, and some none
    model = made(form, level, spec)
    y = model(x, labels)
    y.square().sum().backward()
    torch.testing.assert_close(y, oracle(level, spec)(x, labels))
    check(model.gradients(), expected(x, labels, level, spec))


@ways
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.nn.Module.eval])
@supports("evaluation in a block, and outside of one")
def test_evaluation_in_a_block_is_silent_and_outside_it_is_not(form: str, level: str, mode) -> None:
    x, labels = batch()
    model = made(form, level)
    model.module.train(mode is not torch.nn.Module.eval)
    wanted, plain = oracle(level)(x, labels).detach(), Routed("oracle").net(x).detach()
    with mode() if mode is not torch.nn.Module.eval else contextlib.nullcontext():
        torch.testing.assert_close(model(x, labels).clone().detach(), wanted)
        if mode is not torch.nn.Module.eval or form != "routed_module":
            assert torch.equal(model.module(x), plain)


@ways
@supports("`torch.compile`: eager, fullgraph")
@supports("`torch.compile`: aot_eager, fullgraph")
@supports("`torch.compile`: inductor, fullgraph")
def test_new_labels_are_silent_without_recompiling(form: str, level: str) -> None:
    torch.compiler.reset()
    model = made(form, level)
    backends = EachBackend("eager", "aot_eager", "inductor")
    compiled = torch.compile(model.module, backend=backends, fullgraph=True, dynamic=True)
    for n, seed in [(8, 0), (8, 1), (12, 2)]:
        x, labels = batch(n, seed)
        for _ in backends.each():
            model.zero_grad()
            y = model(x, labels, via=compiled)
            y.square().sum().backward()
            torch.testing.assert_close(y, oracle(level)(x, labels), rtol=1e-4, atol=1e-5)
            check(model.gradients(), expected(x, labels, level))
    assert backends.traces == 1 + (BEFORE_2_10 and (form, level) == ("routed_module", "parameters"))


@ways
@pytest.mark.parametrize("kind", ["multi_hot", "mixture"])
@supports("`torch.compile`: multi-hot and mixture labels")
def test_compiled_with_every_kind_of_label(form: str, level: str, kind: str) -> None:
    torch.compiler.reset()
    x, labels = batch()
    labels = label_kinds(labels)[kind]
    model = made(form, level, SOFT_SILENT)
    y = model(x, labels, via=torch.compile(model.module, backend="aot_eager", fullgraph=True))
    y.square().sum().backward()
    torch.testing.assert_close(y, oracle(level, SOFT_SILENT)(x, labels), rtol=1e-4, atol=1e-5)
    check(model.gradients(), expected(x, labels, level, SOFT_SILENT))


@pytest.mark.parametrize("label", [2, 7, -2])
def test_labels_that_cannot_be_read_while_tracing_open_no_unit(label: int) -> None:
    torch.compiler.reset()
    compiled = torch.compile(partial(gr.route, spec=SILENT), backend="eager", fullgraph=True)
    x, labels = torch.randn(8, SILENT.width), batch()[1]
    with torch.no_grad():
        compiled(x, labels)
        with pytest.raises((IndexError, RuntimeError), match="out of (range|bounds)"):
            compiled(x, torch.where(labels == 1, label, labels))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_mixture_that_is_not_finite_opens_no_unit(value: float) -> None:
    torch.compiler.reset()
    spec = gr.RoutingSpec.one_per_label(3, silent="others")
    labels = torch.tensor([[value, 0.0, 0.0], [value, 0.5, 0.5], [0.0, 0.5, 0.5], [0.0, 0.0, 0.0]])
    compiled = torch.compile(partial(gr.route, spec=spec), backend="eager", fullgraph=True)
    with torch.no_grad():
        off = compiled(torch.ones(4, 3), labels) == 0
    of_nobody = torch.tensor([[False, True, True], [False, True, True], [True, False, False], [False, False, False]])
    assert off[of_nobody].all(), "what the label that cannot be read has off stays off"
    assert torch.equal(off[2:], of_nobody[2:])


@ways
@pytest.mark.parametrize(
    "transform", [pytest.param(t, id=name, marks=supports(f"`torch.func`: {name}")) for name, t in TRANSFORMS.items()]
)
def test_transforms(form: str, level: str, transform) -> None:
    x, labels = batch()
    found = transform(*functional_loss(made(form, level)), x, labels)
    wanted = transform(*functional_loss(oracle(level)), x, labels)
    torch.testing.assert_close(tree_leaves(found), tree_leaves(wanted), rtol=1e-4, atol=1e-4)


@ways
@pytest.mark.parametrize("name", ["grad", "vmap(grad)", "jvp"])
@supports("`torch.compile` of `grad`, `vmap(grad)` and `jvp`")
def test_compiled_transforms(form: str, level: str, name: str) -> None:
    torch.compiler.reset()
    x, labels = batch()
    transform, (loss, params) = TRANSFORMS[name], functional_loss(made(form, level))
    compiled = torch.compile(lambda *args: transform(loss, *args), backend="aot_eager", fullgraph=True)
    wanted = transform(*functional_loss(oracle(level)), x, labels)
    torch.testing.assert_close(tree_leaves(compiled(params, x, labels)), tree_leaves(wanted), rtol=1e-4, atol=1e-4)


@ways
@supports("double backward (`create_graph=True`)")
def test_double_backward(form: str, level: str) -> None:
    x, labels = batch()
    second = []
    for model in (made(form, level), oracle(level)):
        loss = model(x, labels).square().sum()
        gradients = torch.autograd.grad(loss, list(model.net.parameters()), create_graph=True)
        sum(gradient.square().sum() for gradient in gradients).backward()
        second.append(model.gradients())
    check(*second, rtol=1e-3, atol=1e-3)


@ways
@supports("`torch.autograd.grad(is_grads_batched=True)`")
def test_batched_gradients(form: str, level: str) -> None:
    x, labels = batch()
    rows = []
    for model in (made(form, level), oracle(level)):
        y = model(x, labels)
        directions = torch.eye(y.numel()).view(-1, *y.shape)
        rows.append(torch.autograd.grad(y, list(model.net.parameters()), directions, is_grads_batched=True))
    torch.testing.assert_close(*rows, rtol=1e-4, atol=1e-5)


@ways
@supports("autocast, bfloat16")
def test_autocast(form: str, level: str) -> None:
    x, labels = batch()
    found = []
    for model in (made(form, level), oracle(level)):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = model(x, labels)
        assert y.dtype == torch.bfloat16
        y.float().square().sum().backward()
        found.append(model.gradients())
    check(*found, rtol=0.05, atol=0.1)


@ways
@supports("several forwards before one backward")
def test_accumulation(form: str, level: str) -> None:
    batches = [batch(seed=seed) for seed in range(3)]
    model = made(form, level)
    sum(model(x, labels).square().sum() for x, labels in batches).backward()
    check(model.gradients(), sum_of_expected(batches, level))


def sum_of_expected(batches, level: str) -> dict[str, Tensor]:
    each = [expected(x.detach(), labels, level) for x, labels in batches]
    return {name: sum(one[name] for one in each) for name in each[0]}


@ways
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda value: pickle.loads(pickle.dumps(value))])
@supports("deepcopy and pickle")
def test_copies(form: str, level: str, copied) -> None:
    x, labels = batch()
    model = made(form, level)
    twin = Routed.__new__(Routed)
    twin.form = form
    twin.net, twin.module, twin.router = copied((model.net, model.module, model.router))
    twin(x, labels).square().sum().backward()
    check(twin.gradients(), expected(x, labels, level))


# ------------------------------------------------------------------ checkpointing: the forward pass hangs on labels


def checkpointed(module, *, reentrant: bool):
    def run(x: Tensor, *args, **kwargs) -> Tensor:
        return checkpoint(partial(module, **kwargs), x.requires_grad_(), *args, use_reentrant=reentrant)

    return run


@ways
@pytest.mark.parametrize("reentrant", [False, True], ids=["non-reentrant", "reentrant"])
@supports("activation checkpointing")
def test_checkpointing_in_the_block(form: str, level: str, reentrant: bool) -> None:
    for seed in range(2):
        x, labels = batch(seed=seed)
        model = made(form, level)
        with model.block(labels):
            output = model.call(checkpointed(model.module, reentrant=reentrant), x, labels)
            output.square().sum().backward()
        check(model.gradients(), expected(x.detach(), labels, level))


@ways
@pytest.mark.parametrize("inside", [False, True], ids=["outside", "in a block of yet other labels"])
@supports("non-reentrant checkpointing, several forwards with different labels before one backward")
def test_a_recomputation_is_silent_by_the_labels_of_its_own_first_pass(form: str, level: str, inside: bool) -> None:
    batches = [batch(seed=seed) for seed in range(3)]
    model = made(form, level)
    run = checkpointed(model.module, reentrant=False)
    loss = sum(model(x, labels, via=run).square().sum() for x, labels in batches)
    with model.block(batch(seed=4)[1]) if inside else contextlib.nullcontext():
        loss.backward()
    check(model.gradients(), sum_of_expected(batches, level))


@pytest.mark.parametrize("level", ["activations", "parameters"])
@pytest.mark.refuses(
    "silent units: reentrant checkpointing, backward outside of the block", "UsageError", forms=["router"]
)
def test_reentrant_backward_outside_of_the_block_raises(level: str) -> None:
    x, labels = batch()
    model = made("router", level)
    output = model(x, labels, via=checkpointed(model.module, reentrant=True))
    with pytest.raises(gr.RoutingError, match="backward inside the same"):
        output.square().sum().backward()


@pytest.mark.parametrize("level", ["activations", "parameters"])
@pytest.mark.parametrize("keeps", [True, False])
def test_blocks_inside_of_one_checkpoint_are_told_apart_by_their_labels_or_refused(level: str, keeps: bool) -> None:
    """The region has two first passes. A recomputation that makes new labels cannot be told which one it is."""
    (x, labels), (_, others) = batch(seed=0), batch(seed=1)
    model = made("router", level)

    def twice(x: Tensor) -> Tensor:
        found = 0
        for given in (labels, others):
            with model.router(given if keeps else given.clone()):
                found = found + model.module(x).square().sum()
        return found

    loss = checkpoint(twice, x.requires_grad_(), use_reentrant=False)
    if not keeps:
        with pytest.raises(gr.RoutingError, match="backward inside the same"):
            loss.backward()
        return
    loss.backward()
    check(model.gradients(), sum_of_expected([(x, labels), (x, others)], level))


@pytest.mark.parametrize("level", ["activations", "parameters"])
def test_a_recomputation_of_a_pass_that_no_router_saw_raises(level: str) -> None:
    x, labels = batch()
    net = Routed("oracle").net
    loss = checkpoint(net, x.requires_grad_(), use_reentrant=False).square().sum()
    sites = {"encoder": gr.Site(SILENT, level=level)}
    with gr.Router(net, sites)(labels), pytest.raises(gr.RoutingError, match="backward inside the same"):
        loss.backward()


def compiled_checkpoint(model: Routed):
    def run(*args, **kwargs) -> Tensor:
        return checkpoint(partial(model.module, **kwargs), *args, use_reentrant=False)

    torch.compiler.reset()
    return torch.compile(run, backend="aot_eager", fullgraph=True)


@pytest.mark.parametrize(("form", "level"), [way for way in WAYS if way[0] != "routed_module"])
@supports("checkpointing inside of `torch.compile`")
def test_checkpointing_inside_of_compiled_code(form: str, level: str) -> None:
    model = made(form, level)
    compiled = compiled_checkpoint(model)
    for seed in range(2):
        model.zero_grad()
        x, labels = batch(seed=seed)
        model(x, labels, via=compiled).square().sum().backward()
        check(model.gradients(), expected(x, labels, level))


@pytest.mark.parametrize("level", ["activations", "parameters"])
@pytest.mark.refuses(
    "silent units: checkpointing inside of `torch.compile`",
    "Dynamo: a block begins inside of the checkpoint",
    forms=["routed_module"],
)
def test_a_block_inside_of_a_compiled_checkpoint_is_refused_by_dynamo(level: str) -> None:
    model = made("routed_module", level)
    with pytest.raises(torch._dynamo.exc.Unsupported, match=r"(?i)side.?effect"):
        model(*batch(), via=compiled_checkpoint(model))


# ------------------------------------------------------------------ export, meta, layouts, modules called otherwise


@ways
@supports("`torch.export` outside of a block: no trace of routing")
def test_an_exported_model_has_nothing_silent(form: str, level: str) -> None:
    x, _ = batch()
    programs = [torch.export.export(m.eval(), (x,)) for m in (made(form, level).module, Routed("oracle").net)]
    operators = [[str(n.target) for n in p.graph.nodes if n.op == "call_function"] for p in programs]
    assert operators[0] == operators[1]


@pytest.mark.parametrize(("form", "level"), [way for way in WAYS if way[0] != "router"])
@pytest.mark.parametrize("strict", [False, True])
@supports("`torch.export` with labels as an input, under `torch.no_grad()`: silent as they say")
@pytest.mark.filterwarnings("ignore:While compiling, we found certain side effects:UserWarning")  # of the block itself
def test_labels_that_are_an_input_of_an_exported_program_decide_in_it(form: str, level: str, strict: bool) -> None:
    (x, labels), (_, others) = batch(seed=0), batch(seed=1)
    model = made(form, level)

    def given(labels: Tensor) -> dict[str, Tensor]:
        return {"labels" if form == "functional" else "route_labels": labels}

    with torch.no_grad():
        program = torch.export.export(model.module.eval(), (x,), given(labels), strict=strict).module()
        for each in (labels, others):
            torch.testing.assert_close(program(x, **given(each)), oracle(level)(x, each))


@pytest.mark.parametrize("level", ["activations", "parameters"])
@pytest.mark.parametrize("how", ["export", "strict export", "trace"])
@pytest.mark.filterwarnings("ignore:.torch.jit:FutureWarning", "ignore:.torch.jit:DeprecationWarning")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.refuses(
    "silent units: `torch.export` inside of a block", "an exported program knows none", forms=["router"]
)
def test_exporting_in_a_block_is_refused_since_its_labels_would_be_for_ever(level: str, how: str) -> None:
    x, labels = batch()
    model = made("router", level)
    reason = None if BEFORE_2_12 else "does not know this block"  # Dynamo kept the words of an error to itself
    export = {
        "trace": partial(torch.jit.trace, check_trace=False),
        "export": partial(torch.export.export, strict=False),
        "strict export": partial(torch.export.export, strict=True),
    }[how]
    with pytest.raises(Exception, match=reason), torch.no_grad(), model.router(labels):
        export(model.module.eval(), (x,))


@pytest.mark.parametrize("level", ["activations", "parameters"])
@pytest.mark.filterwarnings("ignore:.torch.jit:FutureWarning", "ignore:.torch.jit:DeprecationWarning")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_so_is_tracing_where_gradients_are_recorded(level: str) -> None:
    x, labels = batch()
    model = made("router", level)
    with pytest.raises(Exception, match="does not know this block"), model.router(labels):
        torch.jit.trace(model.module, (x,), check_trace=False)


@ways
@supports("meta device")
def test_shapes_go_through_on_meta(form: str, level: str) -> None:
    x, labels = batch()
    model = made(form, level)
    model.module.to("meta")
    for given in label_kinds(labels).values():
        output = model(x.to("meta"), given.to("meta"))
        output.square().sum().backward()
        assert output.device.type == "meta"


def test_a_forward_method_that_is_called_directly_is_silent_at_level_parameters() -> None:
    x, labels = batch()
    net = Routed("oracle").net
    sites = {"encoder": gr.Site(SILENT, level="parameters")}
    with gr.Router(net, sites)(labels):
        z = net.encoder.forward(x)
    assert not z[SILENT.silent_mask(labels)].any()


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("per_token", [False, True])
@pytest.mark.parametrize("level", ["activations", "parameters"])
def test_nested_tensors_of_a_transformer_are_silent_in_evaluation(level: str, per_token: bool) -> None:
    torch.manual_seed(0)
    layers = nn.TransformerEncoder(nn.TransformerEncoderLayer(4, 2, 8, batch_first=True), 2).eval()
    spec = gr.RoutingSpec.one_per_label(4, silent="others")
    router = gr.Router(layers, {"layers.0": gr.Site(spec, level=level)})
    padding = torch.tensor([[False, False, True], [False, True, True], [False, False, False], [False, False, False]])
    seen: list[Tensor] = []
    layers.layers[0].register_forward_hook(lambda _, __, output: seen.append(output))
    labels = torch.tensor([0, 1, 2, -1])
    given = labels[:, None].expand(4, 3).clone() if per_token else labels
    with torch.no_grad(), router(given):
        layers(torch.randn(4, 3, 4), src_key_padding_mask=padding)
    parts = seen[0].unbind() if seen[0].is_nested else list(seen[0])
    for part, label in zip(parts, labels.tolist(), strict=True):
        own = part[..., label] if label >= 0 else part
        assert own.any()
        assert torch.equal(part.count_nonzero(), own.count_nonzero()), "all other units are off"


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("level", ["activations", "parameters"])
def test_a_whole_nested_tensor_is_silent(level: str) -> None:
    spec = gr.RoutingSpec({"retain": (), "forget": 0}, 1, silent={"retain": "forget"})
    layer = nn.Linear(4, 4)
    batch = torch.nested.nested_tensor([torch.randn(2, 4), torch.randn(3, 4)])
    whole = layer(batch[1])
    with torch.no_grad(), gr.Router(layer, {"": gr.Site(spec, dim=None, level=level)})(torch.tensor([0, 1])):
        retained, forgotten = layer(batch).unbind()
    assert not retained.any()
    torch.testing.assert_close(forgotten, whole)
