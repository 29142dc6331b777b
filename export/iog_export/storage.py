"""How features are stored between encoder and head: in which order, in float16, or as uint8 with a scale a channel."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from iog.arrays import Array
from iog.bundle import FROM_CHANNELS_LAST, TO_CHANNELS_LAST
from onnx import TensorProto, helper, numpy_helper


def store_as_half(model: onnx.ModelProto, names: Collection[str]) -> None:
    """Make these float inputs and outputs float16; arithmetic stays in float32."""
    store, load = {"Cast": {"to": TensorProto.FLOAT16}}, {"Cast": {"to": TensorProto.FLOAT}}
    for value in _ends(model, names):
        _store(model, value, TensorProto.FLOAT16, store, load)


def store_channels_last(model: onnx.ModelProto, names: Collection[str]) -> None:
    """Make those float inputs and outputs that are maps (B, H, W, C) instead of (B, C, H, W).

    ONNX Runtime computes int8 convolutions in that order: to change it took a sixth of a correction by ResNet-101.
    """
    for value in _ends(model, names):
        shape = [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]
        if len(shape) == 4:
            store, load = {"Transpose": {"perm": TO_CHANNELS_LAST}}, {"Transpose": {"perm": FROM_CHANNELS_LAST}}
            _store(model, value, TensorProto.FLOAT, store, load, inner=f"{value.name}_nchw")
            turned = [shape[i] for i in TO_CHANNELS_LAST]
            value.CopyFrom(helper.make_tensor_value_info(value.name, TensorProto.FLOAT, turned))


def store_as_uint8(model: onnx.ModelProto, ranges: Mapping[str, Array]) -> None:
    """Make float inputs and outputs uint8.

    ranges: by name, (2, C) least and greatest value of each channel, the second dimension; what lies beyond is clipped.
    """
    for value in _ends(model, ranges):
        name = value.name
        low, high = np.minimum(ranges[name][0], 0), np.maximum(ranges[name][1], 0)  # 0 is stored exactly
        scale = np.maximum((high - low) / 255, 1e-8).astype(np.float32)
        zero = np.clip(np.rint(-low / scale), 0, 255).astype(np.uint8)
        parameters = [(f"{name}_scale", scale), (f"{name}_zero", zero)]
        model.graph.initializer.extend(numpy_helper.from_array(array, key) for key, array in parameters)
        store, load = {"QuantizeLinear": {"axis": 1}}, {"DequantizeLinear": {"axis": 1}}
        _store(model, value, TensorProto.UINT8, store, load, [key for key, _ in parameters])


def channel_ranges(maps: Iterable[Mapping[str, Array]], names: Collection[str]) -> dict[str, Array]:
    """By name, (2, C) float32: least and greatest value of each channel in all maps (B, C, ...)."""
    found: dict[str, Array] = {}
    for given in maps:
        for name in names:
            flat = given[name].swapaxes(0, 1).reshape(given[name].shape[1], -1)
            here = np.stack([flat.min(1), flat.max(1)])
            before = found.get(name, here)
            found[name] = np.stack([np.minimum(here[0], before[0]), np.maximum(here[1], before[1])])
    return found


def _ends(model: onnx.ModelProto, names: Collection[str]) -> list[onnx.ValueInfoProto]:
    """Float inputs and outputs of the graph with these names."""
    ends = (*model.graph.input, *model.graph.output)
    return [v for v in ends if v.name in names and v.type.tensor_type.elem_type == TensorProto.FLOAT]


def _store(
    model: onnx.ModelProto,
    value: onnx.ValueInfoProto,
    dtype: int,
    store: Mapping[str, Mapping[str, Any]],
    load: Mapping[str, Mapping[str, Any]],
    parameters: Sequence[str] = (),
    inner: str = "",
) -> None:
    """Give an input or output another dtype, or form.

    store, load: the operator on its way, and its attributes. inner: its name inside.
    """
    graph, name = model.graph, value.name
    inner = inner or f"{name}_fp32"
    for node in graph.node:
        for names in (node.input, node.output):
            for i, used in enumerate(names):
                if used == name:
                    names[i] = inner
    value.type.tensor_type.elem_type = dtype
    if any(v.name == name for v in graph.input):
        ((operator, attributes),) = load.items()
        graph.node.insert(0, helper.make_node(operator, [name, *parameters], [inner], **attributes))
    else:
        ((operator, attributes),) = store.items()
        graph.node.append(helper.make_node(operator, [inner, *parameters], [name], **attributes))
