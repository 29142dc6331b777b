"""Graphs adapted to a device compute what the bundle's graphs compute; proved on the CPU."""

import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from iog.arrays import Array
from iog.backends import surgery
from iog.backends.surgery import FAR, draw_inside, falloff, pad, take_from_slots
from iog.bundle import Bundle, GraphInfo
from iog.errors import BackendError, BackendUnavailable
from iog.guidance import STRIDE, GuidanceSpec, heatmap, windows
from onnx import TensorProto, helper

SPECS = [GuidanceSpec(512, 10), GuidanceSpec(256, 5), GuidanceSpec(128, 2.5), GuidanceSpec(64, 16)]
POINT = st.tuples(st.integers(-40, 560), st.integers(-40, 560))


def session(model: bytes) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def drawing(spec: GuidanceSpec, kind: str) -> onnxruntime.InferenceSession:
    """A graph whose output is the heat that it draws."""
    side = spec.size if kind == "guidance" else spec.window
    heat = helper.make_tensor_value_info(kind, TensorProto.UINT8, ["batch", 2, side, side])
    origin = [helper.make_tensor_value_info("origin", TensorProto.INT32, ["batch", 2])] * (kind == "window")
    outputs = [helper.make_tensor_value_info("heat", TensorProto.FLOAT, ["batch", 2, side, side])]
    nodes = [helper.make_node("Cast", [kind], ["heat"], to=TensorProto.FLOAT)]
    if origin:
        outputs.append(helper.make_tensor_value_info("same", TensorProto.INT32, ["batch", 2]))
        nodes.append(helper.make_node("Identity", ["origin"], ["same"]))
    graph = helper.make_graph(nodes, kind, [heat, *origin], outputs)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)

    def tensor(value: object) -> dict[str, object]:
        t = value.type.tensor_type  # type: ignore[attr-defined]
        shape = ("batch", *(d.dim_value for d in t.shape.dim[1:]))
        return {"name": value.name, "dtype": helper.tensor_dtype_to_np_dtype(t.elem_type).name, "shape": shape}  # type: ignore[attr-defined]

    info = GraphInfo.model_validate(
        {
            "file": "drawing.onnx",
            "sha256": "0" * 64,
            "inputs": [tensor(v) for v in graph.input],
            "outputs": [tensor(v) for v in graph.output],
            "macs": 0,
        }
    )
    return session(draw_inside(model.SerializeToString(), info, spec)[0])


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_heat_falls_with_the_distance_as_in_the_patch_and_is_gone_beyond_its_reach(spec: GuidanceSpec) -> None:
    d = np.arange(-spec.reach, spec.reach + 1)
    np.testing.assert_array_equal(falloff(spec)[d[:, None] ** 2 + d[None, :] ** 2], spec.patch)
    assert falloff(spec)[(spec.reach + 1) ** 2] == 0
    assert falloff(spec)[-1] == 0


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_every_window_is_drawn_in_the_graph_as_by_the_runtime(spec: GuidanceSpec) -> None:
    graph = drawing(spec, "window")

    @given(st.lists(POINT, max_size=9), st.lists(POINT, max_size=9), st.lists(POINT, min_size=1, max_size=4))
    @example([], [], [(0, 0)])
    @example([(spec.size - 1, spec.size - 1)] * 2, [(-30, 700)], [(spec.size - 1, spec.size - 1)])
    def holds(foreground: list[tuple[int, int]], background: list[tuple[int, int]], at: list[tuple[int, int]]) -> None:
        fg, bg, new = (np.array(p, np.int32).reshape(-1, 2) for p in (foreground, background, at))
        origins = spec.window_origins(new)
        points = pad([fg] * len(new), [bg] * len(new))
        heat, _ = graph.run(None, {"points": points, "origin": origins})
        np.testing.assert_array_equal(heat, windows(origins, fg, bg, spec))

    holds()


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_a_click_anywhere_in_a_cell_is_drawn_in_its_window_as_by_the_runtime(spec: GuidanceSpec) -> None:
    new = np.stack(np.meshgrid(np.arange(STRIDE), np.arange(STRIDE)), axis=-1).reshape(-1, 2).astype(np.int32)
    origins = spec.window_origins(new)
    drawn, _ = drawing(spec, "window").run(None, {"points": pad(new[:, None], new[:, None][::-1]), "origin": origins})
    for heat, origin, fg, bg in zip(drawn, origins, new, new[::-1], strict=True):
        np.testing.assert_array_equal(heat, windows(origin[None], fg[None], bg[None], spec)[0])


@pytest.mark.parametrize("spec", SPECS[1:], ids=str)
def test_a_frame_is_drawn_in_the_graph_as_by_the_runtime(spec: GuidanceSpec) -> None:
    graph = drawing(spec, "guidance")
    random = np.random.default_rng(1)
    fg, bg = random.integers(-30, spec.size + 30, (7, 2), np.int32), random.integers(0, spec.size, (13, 2), np.int32)
    none = fg[:0]
    (heat,) = graph.run(None, {"points": pad([fg, none], [bg, fg])})
    np.testing.assert_array_equal(heat[0], [heatmap(fg, spec), heatmap(bg, spec)])
    np.testing.assert_array_equal(heat[1], [heatmap(none, spec), heatmap(fg, spec)])


def test_lists_of_clicks_are_filled_with_points_that_are_nowhere_near() -> None:
    one, three = np.array([(1, 2)], np.int32), np.array([(3, 4), (5, 6), (7, 8)], np.int32)
    points = pad([one, three], [three, one[:0]])
    assert points.shape == (2, 2, 8, 2)
    np.testing.assert_array_equal(points[0, 0], [(1, 2), *[(FAR, FAR)] * 7])
    np.testing.assert_array_equal(points[1, 0, :3], three)
    assert (points[1, 1] == FAR).all()
    assert pad([three.repeat(3, axis=0)], [one]).shape == (1, 2, 16, 2)


@pytest.fixture(scope="module", params=["small", "default"])
def bundle(request: pytest.FixtureRequest, split_bundle: Path) -> Bundle:
    return Bundle.open(split_bundle if request.param == "small" else None)


@pytest.mark.parametrize("name", ["encoder", "click"])
def test_a_graph_that_draws_computes_what_it_computes_from_heatmaps(bundle: Bundle, name: str) -> None:
    spec, info = bundle.guidance, bundle.manifest.graphs[name]
    model, drawn = draw_inside(bundle.graphs[name], info, spec)
    assert [t.name for t in drawn.inputs] == [
        {"guidance": "points", "window": "points"}.get(t.name, t.name) for t in info.inputs
    ]
    random = np.random.default_rng(0)
    fg, bg = random.integers(0, spec.size, (2, 5, 2), np.int32)
    if name == "encoder":
        other = {"image": random.integers(0, 256, (1, spec.size, spec.size, 3), np.uint8)}
        heat = {"guidance": np.stack([heatmap(fg, spec), heatmap(bg, spec)])[None]}
    else:
        other = {"origin": spec.window_origins(fg[:1])}
        heat = {"window": windows(other["origin"], fg, bg, spec)}
    expected = session(bundle.graphs[name]).run(None, {**other, **heat})
    found = session(model).run(None, {**other, "points": pad([fg], [bg])})
    for have, want in zip(found, expected, strict=True):
        np.testing.assert_allclose(have, want, atol=1e-3 * want.astype(np.float64).std())


def test_a_batch_of_any_slots_has_the_logits_that_each_object_has_alone(bundle: Bundle) -> None:
    info = bundle.manifest.graphs["head"]
    random = np.random.default_rng(2)
    arenas: dict[str, Array] = {
        t.name: random.normal(size=(5, *t.shape[1:])).astype(t.dtype) for t in info.inputs if t.name != "clicks"
    }
    slots = np.array([[3], [0], [3], [4]], np.int32)
    clicks = random.normal(size=(4, *info.inputs[-1].shape[1:])).astype(np.float32)
    model, slotted = take_from_slots(bundle.graphs["head"], info)
    assert [t.name for t in slotted.inputs] == [*(t.name for t in info.inputs), "slots"]
    (together,) = session(model).run(None, {**arenas, "clicks": clicks, "slots": slots})
    alone = session(bundle.graphs["head"])
    for i, slot in enumerate(slots[:, 0]):
        features = {name: arena[slot : slot + 1] for name, arena in arenas.items()}
        (logits,) = alone.run(None, {**features, "clicks": clicks[i : i + 1]})
        np.testing.assert_allclose(together[i], logits[0], atol=1e-3 * logits.std())


def test_a_graph_that_is_not_the_declared_one_is_refused(bundle: Bundle) -> None:
    with pytest.raises(BackendError, match=r"click\.onnx is not what the manifest declares"):
        draw_inside(bundle.graphs["encoder"], bundle.manifest.graphs["click"], bundle.guidance)
    with pytest.raises(BackendError, match=r"head\.onnx cannot be read"):
        take_from_slots(b"no graph", bundle.manifest.graphs["head"])


def test_without_onnx_the_error_names_the_extra(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(BackendUnavailable, match=r"iog-runtime\[gpu\]"):
        surgery.take_from_slots(bundle.graphs["head"], bundle.manifest.graphs["head"])
