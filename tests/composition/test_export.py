"""torch.export, ONNX, FX and TorchScript: an exported model has no trace of routing, and none is trained by mistake."""

import onnxruntime
import pytest
import torch

import gradroute as gr
from composition.forms import BEFORE_2_10, BEFORE_2_12, Routed, assert_same, batch, expected_gradients


def operators(program: torch.export.ExportedProgram, *, fed_by: str | None = None) -> list[str]:
    """The operators of the graph, in order; those that an input flows through, if one is named."""
    reached = {node for node in program.graph.nodes if node.op == "placeholder" and node.name in (fed_by, "args_0")}
    names = []
    for node in program.graph.nodes:
        if node.op == "call_function" and (fed_by is None or reached.intersection(node.all_input_nodes)):
            reached.add(node)
            names.append(str(node.target))
    return names


@pytest.mark.supports("`torch.export` in evaluation: no trace of routing")
@pytest.mark.parametrize("strict", [False, True])
def test_an_exported_model_has_the_graph_of_the_plain_one(routed: Routed, strict: bool) -> None:
    x, _ = batch()
    plain = torch.export.export(Routed("oracle").net.eval(), (x,), strict=strict)
    program = torch.export.export(routed.module.eval(), (x,), strict=strict)
    assert operators(program) == operators(plain)
    torch.testing.assert_close(program.module()(x), routed.module(x))


@pytest.fixture
def _strict_before_2_10(request: pytest.FixtureRequest, form: str, strict: bool) -> None:
    if BEFORE_2_10 and strict and form == "router":
        reason = "torch's: a strict export takes the labels of a block for an input that the program lacks"
        kind = torch._dynamo.exc.UserError
        request.applymarker(pytest.mark.xfail(reason=reason, raises=kind, strict=True))


def with_labels(routed: Routed, x: torch.Tensor, labels: torch.Tensor) -> tuple[tuple, dict]:
    """The arguments of a call with labels; the router's come from the block."""
    if routed.form == "routed_module":
        return (x,), {"route_labels": labels}
    return ((x,) if routed.form == "router" else (x, labels)), {}


@pytest.mark.supports("`torch.export` with labels under `torch.no_grad()`: no trace of routing")
@pytest.mark.usefixtures("_strict_before_2_10")
@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.filterwarnings("ignore:While compiling, we found certain side effects:UserWarning")  # of the block itself
def test_labels_leave_no_trace_without_gradients(routed: Routed, strict: bool) -> None:
    x, labels = batch()
    with torch.no_grad(), routed.block(labels):
        plain = torch.export.export(Routed("oracle").net.eval(), (x,), strict=strict)
        args, kwargs = with_labels(routed, x, labels)
        program = torch.export.export(routed.module.eval(), args, kwargs, strict=strict)
    assert operators(program, fed_by="x") == operators(plain)


@pytest.mark.refuses("`torch.export` with labels and gradients", "RoutingError: an exported program has no backward")
@pytest.mark.parametrize("strict", [False, True])
def test_exporting_with_labels_and_gradients_raises(routed: Routed, strict: bool) -> None:
    """The exported program would be trained unrouted, since it keeps only what forward computes."""
    x, labels = batch()
    args, kwargs = with_labels(routed, x, labels)
    reason = None if BEFORE_2_12 else "no backward of its own"  # Dynamo kept the words of an error to itself
    with routed.block(labels), pytest.raises(Exception, match=reason):
        torch.export.export(routed.module, args, kwargs, strict=strict)


@pytest.mark.supports("ONNX export in evaluation")
@pytest.mark.filterwarnings(
    r"ignore:`isinstance\(treespec, LeafSpec\)` is deprecated:FutureWarning"
)  # torch 2.13's own
def test_the_onnx_model_computes_what_the_plain_one_does(routed: Routed, tmp_path) -> None:
    x, _ = batch()
    path = tmp_path / "model.onnx"
    program = torch.onnx.export(routed.module.eval(), (x,), dynamo=True, verbose=False)
    plain = torch.onnx.export(Routed("oracle").net.eval(), (x,), dynamo=True, verbose=False)
    kinds = [[node.op_type for node in each.model.graph] for each in (program, plain)]
    assert kinds[0] == kinds[1]
    program.save(path)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (output,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    torch.testing.assert_close(torch.from_numpy(output), routed.module(x).detach())


@pytest.mark.supports("routing a model again after it was exported")
def test_exporting_does_not_stop_a_model_from_being_routed(routed: Routed) -> None:
    x, labels = batch()
    torch.export.export(routed.module.eval(), (x,))
    routed.module.train()
    routed(x, labels).square().sum().backward()
    assert_same(routed.gradients(), expected_gradients(x, labels))


@pytest.mark.filterwarnings("ignore:.torch.jit.trace(_method)?. is (deprecated|not supported in Python 3.14)")
@pytest.mark.parametrize("attached", ["before", "after"])
@pytest.mark.parametrize("how", ["export", "trace"])
def test_training_what_was_exported_says_that_nothing_was_routed(how: str, attached: str) -> None:
    """The program of `torch.export`, or of `torch.jit.trace`, shares the parameters and has none of the hooks."""
    net, x = torch.nn.Sequential(torch.nn.Linear(3, 3)).eval(), torch.ones(2, 3)
    if attached == "before":
        router = gr.Router(net, {"0": gr.RoutingSpec.one_per_label(3)})
    program = torch.export.export(net, (x,)).module() if how == "export" else torch.jit.trace(net, (x,))
    if attached == "after":
        router = gr.Router(net, {"0": gr.RoutingSpec.one_per_label(3)})
    with pytest.warns(gr.UnroutedWarning, match="got gradients"), router(torch.tensor([0, 1])):
        program(x).square().sum().backward()
