"""Writing a module to an ONNX file that is small, and the same bytes each time."""

import contextlib
import io
import warnings
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import ModelProto, TensorProto, helper, numpy_helper
from onnxscript import optimizer
from torch import Tensor, nn
from torch.onnx import ONNXProgram

from common.files import replacing

#: Smaller tensors are not worth a node of their own.
SMALLEST_HALF = 1000


def write_onnx(module: nn.Module, path: Path, *, output: str, **inputs: Tensor) -> None:
    """Export ``module`` in evaluation mode, with a free first axis N of its inputs and output.

    Args:
        module: What to export; it has one output.
        path: The file to write.
        output: The output's name.
        inputs: Examples of the inputs under their names, each with at least two entries along its first axis.
    """
    # The exporter reports its progress on standard output, and warns of its own modules' deprecations.
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            module.eval(),
            tuple(inputs.values()),
            input_names=list(inputs),
            output_names=[output],
            dynamic_shapes={name: {0: torch.export.Dim("N")} for name in inputs},
            # Its optimizer would fold batch normalisation into the matrices, which then are no longer half-precision.
            optimize=False,
            dynamo=True,
        )
        assert program is not None  # which it is without `f`, the file that it could write itself
        model = _tidied(program)
    _strip(model)
    _halve(model)
    onnx.checker.check_model(model, full_check=True)
    with replacing(path) as temporary:
        temporary.write_bytes(model.SerializeToString(deterministic=True))


def _tidied(program: ONNXProgram) -> ModelProto:
    """The program without functions, computable constants and unused nodes."""
    optimizer.inline(program.model)
    optimizer.fold_constants(program.model)
    optimizer.remove_unused_nodes(program.model)
    return program.model_proto


def _strip(model: ModelProto) -> None:
    """Remove what the exporter notes about the code that it saw: stack traces, paths, versions."""
    model.producer_name, model.producer_version, model.doc_string = "gradroute", "", ""
    graph = model.graph
    graph.name, graph.doc_string = "graph", ""
    graph.ClearField("value_info")
    for holder in (model, graph, *graph.node, *graph.input, *graph.output, *graph.initializer):
        holder.ClearField("metadata_props")
        holder.ClearField("doc_string")


def _halve(model: ModelProto) -> None:
    """Store each large matrix in half precision where that loses nothing, with a Cast back to single precision."""
    casts = []
    for tensor in model.graph.initializer:
        if tensor.data_type != TensorProto.FLOAT or len(tensor.dims) < 2 or np.prod(tensor.dims) < SMALLEST_HALF:
            continue
        values = numpy_helper.to_array(tensor)
        half = values.astype(np.float16)
        if np.array_equal(half.astype(np.float32), values):
            name = tensor.name
            tensor.CopyFrom(numpy_helper.from_array(half, f"{name}.half"))
            casts.append(helper.make_node("Cast", [f"{name}.half"], [name], to=TensorProto.FLOAT))
    nodes = [*casts, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
