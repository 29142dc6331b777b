"""Torch modules -> ONNX graphs with a dynamic batch and counted multiply-accumulates; weights in fp16 on request."""

from __future__ import annotations

import contextlib
import hashlib
import io
import logging
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import onnx
import torch
from iog.bundle import GraphInfo, TensorInfo, is_map
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

OPSET = 18
DTYPES: dict[int, str] = {
    TensorProto.UINT8: "uint8",
    TensorProto.INT32: "int32",
    TensorProto.INT64: "int64",
    TensorProto.FLOAT16: "float16",
    TensorProto.FLOAT: "float32",
}
HALF_SUFFIX = "_fp16"  # of the names under which such weights are stored
HALF_MIN_VALUES = 64  # smaller initializers stay float32: they are scalars and shapes of the arithmetic, not weights

Precision = Literal["fp32", "fp16", "int8"]


@dataclass(frozen=True)
class OnnxGraph:
    """A serialized graph and what a manifest says of it."""

    model: bytes
    info: GraphInfo


def export_graph(
    name: str, module: nn.Module, inputs: Mapping[str, Tensor], outputs: tuple[str, ...]
) -> onnx.ModelProto:
    """Trace a module into ONNX; every input's and output's first dimension is the batch.

    inputs: example values by name, in the order of forward's arguments, with a batch of 2 or more.
    Raises RuntimeError if the exporter dropped or tied an input.
    """
    # NB: dynamo ties inputs that are one tensor object, and takes a batch of 1 for a constant.
    distinct = {key: value.clone() for key, value in inputs.items()}
    batch = torch.export.Dim("batch", min=1, max=4096)
    with _quiet():
        program = torch.onnx.export(
            module.eval(),
            tuple(distinct.values()),
            dynamo=True,
            opset_version=OPSET,
            input_names=list(distinct),
            output_names=list(outputs),
            dynamic_shapes=tuple({0: batch} for _ in distinct),
            optimize=True,
            verbose=False,
        )
    assert program is not None
    model = program.model_proto
    used = {tensor for node in model.graph.node for tensor in node.input}
    lost = [key for key in distinct if key not in used]
    if lost or [i.name for i in model.graph.input] != list(distinct):
        raise RuntimeError(f"graph {name!r}: the exporter dropped inputs {lost or 'or renamed them'}; this is a defect")
    _strip(model, name)
    return model


def to_half_storage(model: onnx.ModelProto) -> onnx.ModelProto:
    """Weights in float16, arithmetic in float32: the same values for every engine, half the file.

    Engines fold the casts when they load.
    """
    half = onnx.ModelProto()
    half.CopyFrom(model)
    graph, casts = half.graph, []
    for tensor in graph.initializer:
        values = numpy_helper.to_array(tensor)
        if tensor.data_type == TensorProto.FLOAT and values.size >= HALF_MIN_VALUES:
            stored = numpy_helper.from_array(values.astype(np.float16), tensor.name + HALF_SUFFIX)
            casts.append(helper.make_node("Cast", [stored.name], [tensor.name], to=TensorProto.FLOAT))
            tensor.CopyFrom(stored)
    nodes = [*casts, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
    return half


def finish(model: onnx.ModelProto, file: str, *, channels_last: bool = False) -> OnnxGraph:
    """Check and serialize a graph, and describe it. channels_last: whether maps among the features are."""
    onnx.checker.check_model(model, full_check=True)
    data = model.SerializeToString(deterministic=True)
    info = GraphInfo(
        file=file,
        sha256=hashlib.sha256(data).hexdigest(),
        inputs=tuple(_tensor(v, channels_last) for v in model.graph.input),
        outputs=tuple(_tensor(v, channels_last) for v in model.graph.output),
        macs=count_macs(model),
    )
    return OnnxGraph(data, info)


def count_macs(model: onnx.ModelProto) -> int:
    """Multiply-accumulates of convolutions and matrix products for a batch of one."""
    single = onnx.ModelProto()
    single.CopyFrom(model)
    for value in (*single.graph.input, *single.graph.output, *single.graph.value_info):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param:
                dim.dim_value = 1
    del single.graph.value_info[:]
    single = onnx.shape_inference.infer_shapes(single, strict_mode=True, data_prop=True)
    shapes = {t.name: tuple(t.dims) for t in single.graph.initializer}
    for value in (*single.graph.input, *single.graph.output, *single.graph.value_info):
        shapes[value.name] = tuple(d.dim_value for d in value.type.tensor_type.shape.dim)
    total = 0
    for node in single.graph.node:
        if node.op_type == "Conv":
            total += _product(shapes[node.output[0]]) * _product(shapes[node.input[1]][1:])
        elif node.op_type in ("MatMul", "Gemm"):
            transposed = any(a.name == "transA" and a.i for a in node.attribute)
            inner = shapes[node.input[0]][-2 if transposed else -1]
            total += _product(shapes[node.output[0]]) * inner
        elif node.op_type in ("Einsum", "ConvTranspose"):
            raise ValueError(f"{node.op_type} is not counted; express it as Conv or MatMul")
    return total


def _tensor(value: onnx.ValueInfoProto, channels_last: bool) -> TensorInfo:
    dims = value.type.tensor_type.shape.dim
    shape: tuple[int | str, ...] = ("batch", *(d.dim_value for d in dims[1:]))
    tensor = TensorInfo.model_validate(
        {"name": value.name, "dtype": DTYPES[value.type.tensor_type.elem_type], "shape": shape}
    )
    return tensor.model_copy(update={"channels_last": channels_last and is_map(tensor)})


def _strip(model: onnx.ModelProto, name: str) -> None:
    """Drop the exporter's notes (paths and stack traces of this machine): the same weights give the same bytes."""
    model.graph.name = name
    model.doc_string = model.graph.doc_string = ""
    del model.metadata_props[:]
    del model.graph.metadata_props[:]
    items: tuple[Any, ...] = (*model.graph.node, *model.graph.value_info, *model.graph.input, *model.graph.output)
    for item in items:
        item.doc_string = ""
        del item.metadata_props[:]
    for node in model.graph.node:
        node.name = ""


def _product(shape: Any) -> int:
    return int(np.prod(shape, dtype=np.int64))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's own remarks from the user's terminal; errors pass."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            logger.setLevel(level)
