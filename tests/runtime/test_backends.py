import mmap
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from iog.arrays import Array
from iog.backends import NAMES, Backend, Graph, open_backend, pages
from iog.backends.base import open_graphs
from iog.backends.fake import FakeBackend
from iog.backends.ort import _int8_products_saturate
from iog.bundle import FEATURES, Bundle, GraphInfo, TensorInfo
from iog.errors import BackendError, BackendUnavailable, OutOfMemory
from iog.guidance import windows

ENGINES = ("ort", "openvino")  # that run the bundle's own graphs on the CPU


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
        before = {name: array.copy() for name, array in inputs.items()}
        graph.run(inputs)  # of arrays that can be written, which engines take without a copy
        for key, array in inputs.items():
            np.testing.assert_array_equal(array, before[key])


def test_an_unknown_backend_or_device_is_unavailable() -> None:
    with pytest.raises(BackendUnavailable, match=r"unknown backend 'tvm'; expected one of: ort, .*trt, fake"):
        open_backend("tvm")
    with pytest.raises(BackendUnavailable, match="unknown device 'tpu'"):
        open_backend("ort", device="tpu")


def test_a_missing_engine_names_the_extra_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(BackendUnavailable, match=r"iog-runtime\[cpu\]"):
        open_backend("ort")


def test_openvino_runs_on_the_cpu_where_it_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BackendUnavailable, match=r"runs on device cpu, not 'cuda'"):
        open_backend("openvino", device="cuda")
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(BackendUnavailable, match=r"iog-runtime\[openvino\]"):
        open_backend("openvino")


@pytest.mark.parametrize(
    ("machine", "flags", "saturate"),
    [
        ("x86_64", "avx2 avx512f avx512_vnni", False),
        ("AMD64", "avx2 avx_vnni", False),
        ("x86_64", "avx2 avx512f", True),
        ("AMD64", None, True),
        ("aarch64", "asimd", False),
    ],
)
def test_int8_is_made_exact_where_products_saturate_and_nowhere_else(
    monkeypatch: pytest.MonkeyPatch, machine: str, flags: str | None, saturate: bool
) -> None:
    def read(path: Path) -> str:
        if flags is None:
            raise FileNotFoundError(path)
        return f"flags\t\t: {flags}\n"

    monkeypatch.setattr("platform.machine", lambda: machine)
    monkeypatch.setattr(Path, "read_text", read)
    assert _int8_products_saturate.__wrapped__() == saturate


def test_a_device_that_this_engine_lacks_is_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["CPUExecutionProvider"])
    for device, provider in (("cuda", "CUDAExecutionProvider"), ("tensorrt", "TensorrtExecutionProvider")):
        with pytest.raises(BackendUnavailable, match=rf"no {provider} here .*iog-runtime\[gpu\]"):
            open_backend("ort", device=device)


@pytest.mark.skipif(Path("/dev/nvidia0").exists(), reason="this machine has a GPU")
@pytest.mark.filterwarnings("ignore:Specified provider:UserWarning")
def test_a_device_that_does_not_start_is_unavailable(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["CUDAExecutionProvider"])
    backend = open_backend("ort", device="cuda")
    with pytest.raises(BackendUnavailable, match="does not start"):
        opened(backend, bundle, "head")


@pytest.mark.skipif(Path("/dev/nvidia0").exists(), reason="this machine has a GPU")
def test_without_a_gpu_a_bundle_is_not_opened_on_one(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("cuda.bindings.runtime", reason="the extra gpu is not installed")
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["CUDAExecutionProvider"])
    with pytest.raises(BackendUnavailable, match=r"no GPU can be used here: .*use backend ort with device cpu"):
        open_graphs(open_backend("ort", device="cuda"), bundle)
    with pytest.raises(BackendUnavailable, match=r"no GPU can be used here|iog-runtime\[trt\]"):
        open_backend("trt")


def test_what_a_gpu_needs_and_is_not_installed_is_named(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["CUDAExecutionProvider"])
    for missing in ("cuda.bindings", "tensorrt", "tensorrt_rtx"):
        monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(BackendUnavailable, match=r"install iog-runtime\[gpu\]"):
        open_graphs(open_backend("ort", device="cuda"), bundle)
    with pytest.raises(BackendUnavailable, match=r"install iog-runtime\[trt\]"):
        open_backend("trt")


@pytest.mark.parametrize("engine", ENGINES)
def test_bytes_that_are_no_graph_are_refused(bundle: Bundle, engine: str) -> None:
    for data in (b"", b"no graph", bundle.graphs["head"][:-100]):
        with pytest.raises(BackendError, match="'head' cannot be opened"):
            open_backend(engine).open("head", data, bundle.manifest.graphs["head"])


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
@pytest.mark.parametrize("engine", ENGINES)
def test_a_graph_that_is_not_the_declared_one_is_refused(
    bundle: Bundle, change: dict[str, object], engine: str
) -> None:
    info = bundle.manifest.graphs["encoder"]
    declared: GraphInfo = info.model_copy(
        update={"outputs": (info.outputs[0].model_copy(update=change), *info.outputs[1:])}
    )
    with pytest.raises(BackendError, match=r"'encoder' is not what the manifest declares.*context"):
        open_backend(engine).open("encoder", bundle.graphs["encoder"], declared)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_run_that_fails_names_the_graph(bundle: Bundle, engine: str) -> None:
    graph = opened(open_backend(engine), bundle, "head")
    inputs = noise(graph.info.inputs, 1)
    with pytest.raises(BackendError, match="'head' failed"):
        graph.run({**inputs, "clicks": inputs["clicks"][:, :3]})


def test_openvino_keeps_features_in_its_own_layout_and_takes_any(bundle: Bundle) -> None:
    encoder, head = (opened(open_backend("openvino"), bundle, name) for name in ("encoder", "head"))
    features = dict(zip(FEATURES, encoder.run(noise(encoder.info.inputs, 1)), strict=False))
    assert features["detail"].transpose(0, 2, 3, 1).flags.c_contiguous
    given = {**features, "clicks": noise(head.info.inputs, 1)["clicks"]}
    (own,) = head.run(given)
    (other,) = head.run({name: np.ascontiguousarray(value) for name, value in given.items()})
    np.testing.assert_array_equal(own, other)


def test_openvino_keeps_what_it_compiled(bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    opened(open_backend("openvino"), bundle, "head")
    assert list((tmp_path / "iog-runtime" / "openvino").iterdir())
    (tmp_path / "a-file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "a-file"))
    graph = opened(open_backend("openvino"), bundle, "head")  # not kept, and runs all the same
    assert np.isfinite(graph.run(noise(graph.info.inputs, 1))[0]).all()


@pytest.mark.parametrize("engine", ENGINES)
def test_a_closed_graph_says_so(bundle: Bundle, engine: str) -> None:
    graph = opened(open_backend(engine), bundle, "head")
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


def test_backends_that_end_in_any_order_leave_signals_their_stack() -> None:
    pytest.importorskip("openvino")
    script = """
import faulthandler, gc, signal
from iog.backends import open_backend
faulthandler.enable()
signal.signal(signal.SIGUSR1, lambda *_: None)
first, second = open_backend("openvino"), open_backend("openvino")
del first
gc.collect()
del second
gc.collect()
signal.raise_signal(signal.SIGUSR1)
"""
    assert subprocess.run([sys.executable, "-c", script], timeout=120).returncode == 0


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("side", [4, 600])  # on the heap, in pages of their own
def test_arrays_that_are_kept_lie_apart_and_hold_what_they_are_given(side: int, batch: int) -> None:
    tensors = [
        TensorInfo(name="level1", dtype="float16", shape=("batch", 5, side, side)),
        TensorInfo(name="pooled", dtype="float32", shape=("batch", 3, 7)),
        TensorInfo(name="level2", dtype="uint8", shape=("batch", 11, side, side)),
    ]
    arrays = pages.arrays(tensors, batch)
    for value, (array, tensor) in enumerate(zip(arrays, tensors, strict=True)):
        assert array.shape == (batch, *tensor.shape[1:])
        assert array.dtype == tensor.dtype
        assert array.flags.c_contiguous
        array[...] = value
    assert [np.unique(array).tolist() for array in arrays] == [[0], [1], [2]]


def test_more_than_there_is_raises_out_of_memory() -> None:
    with pytest.raises(OutOfMemory, match="no memory for features of 4,503,599,627,370,496 bytes"):
        pages.arrays([TensorInfo(name="skip", dtype="uint8", shape=("batch", 1 << 52))], 1)


def resident() -> int:
    """Bytes of memory that this process holds."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * mmap.PAGESIZE


@pytest.mark.parametrize("name", ENGINES)
@pytest.mark.parametrize("batch", [1, 2])
def test_maps_that_are_channels_last_in_the_bundle_hold_the_same(
    name: str, batch: int, bundle: Bundle, last_bundle: Path
) -> None:
    last = Bundle.open(last_bundle)
    inputs = noise(bundle.manifest.graphs["encoder"].inputs, batch)
    results = []
    for each in (bundle, last):
        encoder, head = (opened(open_backend(name), each, graph) for graph in ("encoder", "head"))
        features = dict(zip((t.name for t in encoder.info.outputs), encoder.run(inputs), strict=True))
        results.append((features, head.run({**noise(head.info.inputs, batch), **features})[0]))
    (expected, logits), (found, last_logits) = results
    turned = [t.name for t in last.manifest.graphs["encoder"].outputs if t.channels_last]
    assert len(turned) >= 3
    for key, value in expected.items():
        assert found[key].flags.c_contiguous or key not in turned  # no engine has to turn them once more
        np.testing.assert_allclose(found[key].transpose(0, 3, 1, 2) if key in turned else found[key], value, atol=1e-5)
    np.testing.assert_allclose(last_logits, logits, atol=1e-3)


@pytest.mark.parametrize("which", ["encoder", "click", "head"])
@pytest.mark.parametrize("sizes", [(1, 2), (2, 3), (0, 0)])
def test_openvino_refuses_batches_that_it_would_be_spoilt_by(
    which: str, sizes: tuple[int, int], bundle: Bundle
) -> None:
    graph = opened(open_backend("openvino", threads=1), bundle, which)
    inputs = noise(graph.info.inputs, 3)
    expected = graph.run(inputs)
    first, *_ = inputs
    with pytest.raises(BackendError, match=rf"batches of \[{'.*'.join(map(str, sorted(set(sizes))))}\]; expected one"):
        graph.run({key: value[: sizes[key != first]] for key, value in inputs.items()})
    assert all(map(np.array_equal, graph.run(inputs), expected))


@pytest.mark.parametrize("name", ENGINES)
def test_features_of_an_object_stay_what_they_are(name: str, bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "LARGE", 1)  # in pages of their own
    graph = opened(open_backend(name), bundle, "encoder")
    first = noise(graph.info.inputs, 1)
    other = {name: np.full_like(value, 200) for name, value in first.items()}
    kept = graph.run(first)
    as_they_were = [array.copy() for array in kept]
    for _ in range(3):
        graph.run(other)
        prepared()
    assert all(map(np.array_equal, kept, as_they_were))
    assert all(map(np.array_equal, graph.run(first), as_they_were))


def prepared() -> None:
    """Wait for what is prepared in the background."""
    for thread in threading.enumerate():
        if isinstance(thread, threading.Timer):
            thread.join(30)


LARGE = TensorInfo(name="skip", dtype="float32", shape=("batch", 16, 1024, 1024))  # 67 MB


def touched(array: Array) -> float:
    """The share of an array's pages that this process holds."""
    first = array.ctypes.data // mmap.PAGESIZE
    count = (array.ctypes.data + array.nbytes - 1) // mmap.PAGESIZE + 1 - first
    with Path("/proc/self/pagemap").open("rb") as pagemap:
        pagemap.seek(8 * first)
        return float((np.frombuffer(pagemap.read(8 * count), np.uint64) >> np.uint64(63)).mean())


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_for_the_next_object_is_touched_before_it_is_asked_for() -> None:
    ahead = pages.Ahead([LARGE])
    prepared()
    with ahead.outputs(1) as (first,):
        assert touched(first) == 1
        first[...] = 1
        assert ahead._next is None  # nothing is prepared while the encoder runs
    prepared()
    with ahead.outputs(3) as (three,):
        assert touched(three) == 0  # none is prepared for them
        three[...] = 3
    with ahead.outputs(1) as (second,):
        assert touched(second) == 1
        second[...] = 2
    assert [np.unique(a).tolist() for a in (first, second, three)] == [[1], [2], [3]]
    prepared()
    ahead.close()
    for _ in range(2):
        with ahead.outputs(1) as (after,):
            assert touched(after) == 0
        prepared()


@pytest.mark.parametrize("name", ENGINES)
def test_a_closed_encoder_holds_no_memory_for_the_next_object(
    name: str, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pages, "LARGE", 1)
    graph = opened(open_backend(name), bundle, "encoder")
    graph.run(noise(graph.info.inputs, 1))
    prepared()
    (ahead,) = [value for value in vars(graph).values() if isinstance(value, pages.Ahead)]
    assert ahead._next is not None
    graph.close()
    assert ahead._next is None


def test_memory_asked_for_in_a_row_by_many_threads_is_never_the_same() -> None:
    ahead = pages.Ahead([TensorInfo(name="skip", dtype="uint8", shape=("batch", pages.LARGE))])

    def take(number: int) -> Array:
        with ahead.outputs(1) as (array,):
            array[...] = number
        return array

    with ThreadPoolExecutor(8) as pool:
        arrays = list(pool.map(take, range(40)))
    prepared()
    assert all((array == number).all() for number, array in enumerate(arrays))


def test_memory_that_cannot_be_prepared_is_missed_by_those_who_ask() -> None:
    ahead = pages.Ahead([TensorInfo(name="skip", dtype="uint8", shape=("batch", 1 << 52))])
    prepared()
    with pytest.raises(OutOfMemory, match="no memory for features of 4,503,599,627,370,496 bytes"), ahead.outputs(1):
        pass


def test_a_lack_of_memory_for_small_features_is_told_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_: object) -> Array:
        raise MemoryError("Unable to allocate")

    monkeypatch.setattr(np, "empty", none)
    with pytest.raises(OutOfMemory, match="no memory for features of 64 bytes: Unable to allocate"):
        pages.arrays([TensorInfo(name="skip", dtype="uint8", shape=("batch", 5))], 1)


def test_memory_is_had_where_no_thread_can_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as without:
        without.setattr(threading.Timer, "start", start)
        ahead = pages.Ahead([TensorInfo(name="skip", dtype="uint8", shape=("batch", pages.LARGE))])
        with ahead.outputs(1) as (first,):
            first[...] = 1
    with ahead.outputs(1) as (second,):
        second[...] = 2
    prepared()
    assert ahead._next is not None
    assert (first == 1).all()
    assert (second == 2).all()


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_pages_of_forgotten_features_go_back_to_the_system() -> None:
    before = resident()
    (array,) = pages.arrays([LARGE], 1)
    array[...] = 1
    (part,) = array[:, 0]
    del array
    assert resident() - before > 60e6  # a view keeps them
    assert part.max() == 1
    del part
    assert resident() - before < 30e6
