import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from iog.arrays import Array
from iog.backends import NAMES, Backend, Graph, open_backend
from iog.backends.fake import FakeBackend
from iog.bundle import Bundle, GraphInfo, TensorInfo
from iog.errors import BackendError, BackendUnavailable
from iog.guidance import windows


@pytest.fixture(params=NAMES)
def backend(request: pytest.FixtureRequest) -> Backend:
    return open_backend(request.param)


@pytest.fixture(scope="module")
def bundle(split_bundle: Path) -> Bundle:
    return Bundle.open(split_bundle)


def opened(backend: Backend, bundle: Bundle, graph: str) -> Graph:
    return backend.open(graph, bundle.graphs[graph], bundle.manifest.graphs[graph])


def noise(tensors: tuple[TensorInfo, ...], batch: int) -> dict[str, Array]:
    random = np.random.default_rng(0)
    return {
        t.name: random.integers(0, 100, [batch if isinstance(d, str) else d for d in t.shape]).astype(t.dtype)
        for t in tensors
    }


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("graph", ["encoder", "click", "head"])
def test_outputs_have_the_declared_names_dtypes_and_shapes(
    backend: Backend, bundle: Bundle, graph: str, batch: int
) -> None:
    info = bundle.manifest.graphs[graph]
    outputs = opened(backend, bundle, graph).run(noise(info.inputs, batch))
    assert len(outputs) == len(info.outputs)
    for declared, found in zip(info.outputs, outputs, strict=True):
        assert found.shape == (batch, *declared.shape[1:])
        assert found.dtype == declared.dtype


def test_a_graph_runs_in_many_threads_and_gives_the_same(backend: Backend, bundle: Bundle) -> None:
    graph = opened(backend, bundle, "encoder")
    inputs = noise(graph.info.inputs, 1)
    expected = graph.run(inputs)
    with ThreadPoolExecutor(8) as pool:
        for outputs in pool.map(lambda _: graph.run(inputs), range(16)):
            for found, want in zip(outputs, expected, strict=True):
                np.testing.assert_array_equal(found, want)


def test_inputs_are_left_as_they_were(backend: Backend, bundle: Bundle) -> None:
    for name in ("encoder", "click", "head"):
        graph = opened(backend, bundle, name)
        inputs = noise(graph.info.inputs, 2)
        for array in inputs.values():
            array.flags.writeable = False
        graph.run(inputs)


def test_an_unknown_backend_or_device_is_unavailable() -> None:
    with pytest.raises(BackendUnavailable, match="unknown backend 'tvm'; expected one of: ort, fake"):
        open_backend("tvm")
    with pytest.raises(BackendUnavailable, match="unknown device 'tpu'"):
        open_backend("ort", device="tpu")


def test_a_missing_engine_names_the_extra_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(BackendUnavailable, match=r"iog-runtime\[cpu\]"):
        open_backend("ort")


def test_a_device_that_this_engine_lacks_is_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(BackendUnavailable, match=r"no CUDAExecutionProvider here .*iog-runtime\[gpu\]"):
        open_backend("ort", device="cuda")


@pytest.mark.filterwarnings("ignore:Specified provider:UserWarning")
def test_a_device_that_does_not_start_is_unavailable(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["CUDAExecutionProvider"])
    backend = open_backend("ort", device="cuda")
    with pytest.raises(BackendUnavailable, match="does not start"):
        opened(backend, bundle, "head")


def test_bytes_that_are_no_graph_are_refused(bundle: Bundle) -> None:
    for data in (b"", b"no graph", bundle.graphs["head"][:-100]):
        with pytest.raises(BackendError, match="'head' cannot be opened"):
            open_backend("ort").open("head", data, bundle.manifest.graphs["head"])


@pytest.mark.parametrize(
    "change",
    [
        {"name": "contexts"},
        {"dtype": "float16"},
        {"shape": ("batch", 5, 8, 9)},
        {"shape": (1, 5, 8, 8)},
        {"shape": ("batch", 5, 64)},
    ],
    ids=str,
)
def test_a_graph_that_is_not_the_declared_one_is_refused(bundle: Bundle, change: dict[str, object]) -> None:
    info = bundle.manifest.graphs["encoder"]
    declared: GraphInfo = info.model_copy(
        update={"outputs": (info.outputs[0].model_copy(update=change), *info.outputs[1:])}
    )
    with pytest.raises(BackendError, match=r"'encoder' is not what the manifest declares.*context"):
        open_backend("ort").open("encoder", bundle.graphs["encoder"], declared)


def test_a_run_that_fails_names_the_graph(bundle: Bundle) -> None:
    graph = opened(open_backend("ort"), bundle, "head")
    inputs = noise(graph.info.inputs, 1)
    with pytest.raises(BackendError, match="'head' failed"):
        graph.run({**inputs, "clicks": inputs["clicks"][:, :3]})


def test_a_closed_graph_says_so(bundle: Bundle) -> None:
    graph = opened(open_backend("ort"), bundle, "head")
    graph.close()
    graph.close()
    with pytest.raises(BackendError, match="'head' is closed"):
        graph.run(noise(graph.info.inputs, 1))


def test_the_fake_counts_its_runs(bundle: Bundle) -> None:
    fake = FakeBackend()
    graph = opened(fake, bundle, "head")
    for _ in range(3):
        graph.run(noise(graph.info.inputs, 1))
    assert fake.runs == {"head": 3}


def test_the_fakes_cells_see_their_own_field_only(bundle: Bundle) -> None:
    spec = bundle.guidance
    near, far = np.array([(40, 40)], np.int32), np.array([(40, 40 + spec.reach + 31)], np.int32)
    graph = opened(FakeBackend(), bundle, "click")
    none = np.zeros((0, 2), np.int32)

    def cells(background: Array) -> Array:
        origin = spec.window_origins(near)
        return graph.run({"window": windows(origin, near, background, spec), "origin": origin})[0]

    alone, together = cells(none), cells(far)
    assert (alone[0, 0] >= 0).all()
    assert alone.max() == 1
    assert (together[0, 0, :2] == alone[0, 0, :2]).all()
    assert (together[0, 0, 3] < alone[0, 0, 3]).any()
