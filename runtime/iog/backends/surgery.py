"""A bundle's graphs as a device wants them: heat drawn in the graph, features taken from slots of an arena.

Only what composes graphs needs the onnx package: the extras `gpu` and `trt` bring it.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from iog.arrays import FloatArray, PointArray
from iog.bundle import GraphInfo, TensorInfo
from iog.errors import BackendError, BackendUnavailable
from iog.guidance import GuidanceSpec

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, ValueInfoProto

POINTS = TensorInfo(name="points", dtype="int32", shape=("batch", 2, 8, 2))  # 8 or more: see `pad`
SLOTS = TensorInfo(name="slots", dtype="int32", shape=("batch", 1))
KEEP_FLOAT = frozenset({"clicks", "cells", "logits"})  # small, and drawn or thresholded by the runtime in float32
FAR = -(1 << 20)  # a point that no pixel of any frame is near to


def falloff(spec: GuidanceSpec) -> FloatArray:
    """The heat of a click by the squared distance to it, in whole pixels: (2 (reach + 1)² + 1,), 0 at the end.

    These are the numbers of `GuidanceSpec.patch`, by the same arithmetic, 0..255 and whole.
    """
    squared = np.arange(2 * (spec.reach + 1) ** 2 + 1, dtype=np.float64)
    heat: FloatArray = np.floor(255 * np.exp(-4 * math.log(2) * squared / spec.fwhm**2)).astype(np.float32)
    return heat


def pad(foreground: Sequence[PointArray], background: Sequence[PointArray]) -> PointArray:
    """Clicks as a graph takes them: for each of n maps, (f, 2) and (b, 2) points (x, y) -> (n, 2, m, 2) int32.

    Short lists are filled with points that have no heat within reach; m is 8, 16, 32 ...: engines prepare for every
    shape that they meet.
    """
    longest = max(len(points) for points in (*foreground, *background))
    out = np.full((len(foreground), 2, max(int(POINTS.shape[2]), power_of_two(longest)), 2), FAR, np.int32)
    for i, kinds in enumerate(zip(foreground, background, strict=True)):
        for kind, points in enumerate(kinds):
            out[i, kind, : len(points)] = points
    return out


def power_of_two(count: int) -> int:
    """The smallest one that is not less than `count`, at least 1."""
    return 1 << max(count - 1, 0).bit_length()


def draw_inside(model: bytes, info: GraphInfo, spec: GuidanceSpec) -> tuple[bytes, GraphInfo]:
    """An encoder, click or network graph that takes `points`, as of `pad`, in place of heatmaps and draws them itself.

    Its heat is `iog.guidance.draw`'s, number by number. Points are relative to the frame; a click graph's windows lie
    at its `origin`. Byte inputs are cast before anything else: TensorRT has no arithmetic on bytes.
    """
    onnx = _onnx()
    proto = _parsed(model, info)
    heat = next(t for t in info.inputs if t.name in ("guidance", "window"))
    side = heat.shape[-1]
    assert isinstance(side, int)
    origin = "origin" if any(t.name == "origin" for t in info.inputs) else None
    nodes, constants = _drawing(side, spec, origin, _rename(proto.graph, heat.name), proto.opset_import[0].version)
    for t in info.inputs:
        if t.dtype == "uint8" and t is not heat:
            nodes.append(
                onnx.helper.make_node("Cast", [t.name], [_rename(proto.graph, t.name)], to=onnx.TensorProto.FLOAT)
            )
    points = onnx.helper.make_tensor_value_info("points", onnx.TensorProto.INT32, ["batch", 2, "clicks", 2])
    return _rebuilt(proto, info, {heat.name: (POINTS, points)}, nodes, constants)


def take_from_slots(model: bytes, info: GraphInfo) -> tuple[bytes, GraphInfo]:
    """A head that takes its features from arenas, (N, ...) tensors of N objects, by `slots` (B, 1), next to `clicks`.

    Members of a batch may be any objects, in any order, one object several times.
    """
    onnx = _onnx()
    proto = _parsed(model, info)
    axis = onnx.numpy_helper.from_array(np.array([1], np.int64), "slot_axis")
    nodes = [onnx.helper.make_node("Squeeze", ["slots", axis.name], ["slot"])]
    changed = {}
    for t in info.inputs:
        if t.name == "clicks":
            continue
        nodes.append(onnx.helper.make_node("Gather", [t.name, "slot"], [_rename(proto.graph, t.name)], axis=0))
        arena = t.model_copy(update={"shape": ("capacity", *t.shape[1:])})
        element = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(t.dtype))
        changed[t.name] = arena, onnx.helper.make_tensor_value_info(t.name, element, arena.shape)
    slots = onnx.helper.make_tensor_value_info("slots", onnx.TensorProto.INT32, SLOTS.shape)
    return _rebuilt(proto, info, {**changed, "slots": (SLOTS, slots)}, nodes, [axis])


def to_half(model: bytes, keep: Collection[str] = KEEP_FLOAT) -> bytes:
    """Weights and arithmetic in float16, and inputs and outputs but for those to `keep` in float32.

    What quantizes features does so from float32. Raises BackendError if it cannot be done.
    """
    onnx = _onnx()
    from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST, convert_float_to_float16
    from onnxruntime.transformers.onnx_model import OnnxModel

    proto = onnx.load_from_string(model)
    kept = [v.name for v in (*proto.graph.input, *proto.graph.output) if v.name in keep]
    in_float = [*DEFAULT_OP_BLOCK_LIST, "QuantizeLinear", "DequantizeLinear"]
    try:
        half = OnnxModel(convert_float_to_float16(proto, keep_io_types=kept, op_block_list=in_float))
        half.topological_sort()
        onnx.checker.check_model(half.model)
    except Exception as e:  # the converter's have no common base
        raise BackendError(f"a graph cannot be computed in half precision: {e}; use an fp32 bundle") from e
    return bytes(half.model.SerializeToString())


def _drawing(side: int, spec: GuidanceSpec, origin: str | None, out: str, opset: int) -> tuple[list[Any], list[Any]]:
    """Nodes from `points` to float heat `out`, (n, 2, side, side), and their constants.

    Heat falls with distance, so the maximum over clicks is the heat at the distance of the nearest one.
    """
    onnx = _onnx()
    limit = spec.reach + 1  # in x or in y: no heat from here on
    constants = {
        "draw_axis": np.arange(side, dtype=np.int32),
        "draw_near": np.array(-limit, np.int32),
        "draw_far": np.array(limit, np.int32),
        "draw_falloff": falloff(spec),
        "draw_last": np.array([-1], np.int64),
        "draw_xy": np.array([1, 3], np.int64),
        "draw_row": np.array([3], np.int64),
        "draw_column": np.array([4], np.int64),
        "draw_clicks": np.array([2], np.int64),
        "draw_x": np.array(0, np.int64),
        "draw_y": np.array(1, np.int64),
    }
    node = onnx.helper.make_node
    nodes = []
    relative = "points"
    if origin:
        nodes += [
            node("Unsqueeze", [origin, "draw_origin_axes"], ["draw_at"]),  # (n, 1, 1, 2)
            node("Sub", ["points", "draw_at"], ["draw_relative"]),
        ]
        constants["draw_origin_axes"] = np.array([1, 2], np.int64)
        relative = "draw_relative"
    for axis in "xy":
        nodes += [
            node("Gather", [relative, f"draw_{axis}"], [f"draw_p{axis}"], axis=3),  # (n, 2, m)
            node("Unsqueeze", [f"draw_p{axis}", "draw_row"], [f"draw_c{axis}"]),  # (n, 2, m, 1)
            node("Sub", ["draw_axis", f"draw_c{axis}"], [f"draw_d{axis}"]),  # (n, 2, m, side)
            node("Max", [f"draw_d{axis}", "draw_near"], [f"draw_l{axis}"]),
            node("Min", [f"draw_l{axis}", "draw_far"], [f"draw_n{axis}"]),
            node("Mul", [f"draw_n{axis}", f"draw_n{axis}"], [f"draw_s{axis}"]),
        ]
    nodes += [
        node("Unsqueeze", ["draw_sx", "draw_row"], ["draw_across"]),  # (n, 2, m, 1, side)
        node("Unsqueeze", ["draw_sy", "draw_column"], ["draw_down"]),  # (n, 2, m, side, 1)
        node("Add", ["draw_across", "draw_down"], ["draw_squared"]),
        node("ReduceMin", ["draw_squared", "draw_clicks"], ["draw_nearest"], keepdims=0)  # (n, 2, side, side)
        if opset >= 18
        else node("ReduceMin", ["draw_squared"], ["draw_nearest"], keepdims=0, axes=[2]),
        node("Gather", ["draw_falloff", "draw_nearest"], [out]),
    ]
    used = {name for n in nodes for name in n.input}
    return nodes, [onnx.numpy_helper.from_array(v, k) for k, v in constants.items() if k in used]


def _parsed(model: bytes, info: GraphInfo) -> ModelProto:
    """The graph, if it is the declared one."""
    onnx = _onnx()
    try:
        proto: ModelProto = onnx.load_from_string(model)
    except Exception as e:  # protobuf's, which differ by its version
        raise BackendError(f"graph {info.file} cannot be read: {e}; export the bundle again") from e

    def found(values: Any) -> list[tuple[str, str, tuple[int, ...]]]:
        tensors = [(v.name, v.type.tensor_type) for v in values]
        return [
            (name, onnx.helper.tensor_dtype_to_np_dtype(t.elem_type).name, tuple(d.dim_value for d in t.shape.dim[1:]))
            for name, t in tensors
        ]

    for declared, values in ((info.inputs, proto.graph.input), (info.outputs, proto.graph.output)):
        want, have = [(t.name, t.dtype, t.shape[1:]) for t in declared], found(values)
        if want != have:
            raise BackendError(f"graph {info.file} is not what the manifest declares: it has {have}, not {want}")
    return proto


def _rebuilt(
    proto: ModelProto,
    info: GraphInfo,
    changed: dict[str, tuple[TensorInfo, ValueInfoProto]],
    nodes: list[Any],
    constants: list[Any],
) -> tuple[bytes, GraphInfo]:
    """The graph with `nodes` before its own, inputs exchanged by name, and those of new names at the end."""
    onnx = _onnx()
    graph = proto.graph
    known = {t.name for t in info.inputs}
    added = [pair for name, pair in changed.items() if name not in known]
    inputs = [changed[v.name][1] if v.name in changed else v for v in graph.input] + [value for _, value in added]
    own = [*nodes, *graph.node]
    del graph.input[:], graph.node[:], graph.value_info[:]
    graph.input.extend(inputs)
    graph.node.extend(own)
    graph.initializer.extend(constants)
    try:
        onnx.checker.check_model(proto)
        proto = onnx.shape_inference.infer_shapes(proto, check_type=True, strict_mode=True)  # TensorRT wants shapes
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as e:
        raise BackendError(f"graph {info.file} cannot be adapted to a device: {e}; export the bundle again") from e
    tensors = tuple(changed[t.name][0] if t.name in changed else t for t in info.inputs)
    return proto.SerializeToString(), info.model_copy(update={"inputs": (*tensors, *(t for t, _ in added))})


def _rename(graph: GraphProto, name: str) -> str:
    """Let the nodes read input `name` under another name, which is returned: a new node writes it."""
    inner = f"{name}_inside"
    for node in graph.node:
        for i, used in enumerate(node.input):
            if used == name:
                node.input[i] = inner
    return inner


def _onnx() -> Any:
    try:
        import onnx
        import onnx.checker
        import onnx.helper
        import onnx.numpy_helper
        import onnx.shape_inference
    except ImportError as e:
        raise BackendUnavailable(
            "graphs for a GPU are composed with the onnx package, which is not installed; install iog-runtime[gpu]"
        ) from e
    return onnx
