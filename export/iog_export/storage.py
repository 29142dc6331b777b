"""How features are stored between encoder and head: in float16, or as uint8 with a scale for each channel."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from iog.arrays import Array
from onnx import TensorProto, helper, numpy_helper


def store_as_half(model: onnx.ModelProto, names: Collection[str]) -> None:
    """Make these float inputs and outputs float16; arithmetic stays in float32."""
    for name in _ends(model, names):
        _store(
            model, name, TensorProto.FLOAT16, {"Cast": {"to": TensorProto.FLOAT16}}, {"Cast": {"to": TensorProto.FLOAT}}
        )


def store_as_uint8(model: onnx.ModelProto, ranges: Mapping[str, Array]) -> None:
    """Make float inputs and outputs uint8.

    ranges: by name, (2, C) least and greatest value of each channel, the second dimension; what lies beyond is clipped.
    """
    for name in _ends(model, ranges):
        low, high = np.minimum(ranges[name][0], 0), np.maximum(ranges[name][1], 0)  # 0 is stored exactly
        scale = np.maximum((high - low) / 255, 1e-8).astype(np.float32)
        zero = np.clip(np.rint(-low / scale), 0, 255).astype(np.uint8)
        parameters = [(f"{name}_scale", scale), (f"{name}_zero", zero)]
        model.graph.initializer.extend(numpy_helper.from_array(value, key) for key, value in parameters)
        store, load = {"QuantizeLinear": {"axis": 1}}, {"DequantizeLinear": {"axis": 1}}
        _store(model, name, TensorProto.UINT8, store, load, [key for key, _ in parameters])


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


def _ends(model: onnx.ModelProto, names: Collection[str]) -> list[str]:
    """Those of the names that are float inputs or outputs of the graph."""
    ends = (*model.graph.input, *model.graph.output)
    return [v.name for v in ends if v.name in names and v.type.tensor_type.elem_type == TensorProto.FLOAT]


def _store(
    model: onnx.ModelProto,
    name: str,
    dtype: int,
    store: Mapping[str, Mapping[str, Any]],
    load: Mapping[str, Mapping[str, Any]],
    parameters: Sequence[str] = (),
) -> None:
    """Give an input or output another dtype. store, load: the operator on its way, and its attributes."""
    graph, inner = model.graph, f"{name}_fp32"
    for node in graph.node:
        for names in (node.input, node.output):
            for i, used in enumerate(names):
                if used == name:
                    names[i] = inner
    (value,) = (v for v in (*graph.input, *graph.output) if v.name == name)
    value.type.tensor_type.elem_type = dtype
    if any(v.name == name for v in graph.input):
        ((operator, attributes),) = load.items()
        graph.node.insert(0, helper.make_node(operator, [name, *parameters], [inner], **attributes))
    else:
        ((operator, attributes),) = store.items()
        graph.node.append(helper.make_node(operator, [inner, *parameters], [name], **attributes))
