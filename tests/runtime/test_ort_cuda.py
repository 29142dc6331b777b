"""What can be said of ONNX Runtime's GPU providers without a GPU."""

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from iog.backends.cuda import CudaMemory
from iog.backends.device import Buffer, adapted
from iog.backends.ort import OrtBackend
from iog.backends.ort_cuda import OrtDeviceBackend, OrtProgram
from iog.bundle import Bundle
from iog.errors import BackendError


class Stream(CudaMemory):
    """As far as the options look at it."""

    def __init__(self) -> None:
        self._stream = 7

    def close(self) -> None:
        """It has nothing."""


def tensorrt_options(bundle: Bundle, model: bytes) -> dict[str, str]:
    backend = OrtDeviceBackend("cpu", budget=1 << 20)
    backend._device = "tensorrt"
    info = adapted(bundle)["head"][1]
    (_, options), (_, cuda) = backend._providers("head", model, info, Stream(), precision="fp32", record=False)
    assert cuda["enable_cuda_graph"] == "0"
    return options


def test_engines_of_other_weights_are_kept_apart(
    split_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    bundle = Bundle.open(split_bundle)
    one, other, again = (
        tensorrt_options(bundle, model)["trt_engine_cache_path"] for model in (b"one", b"other", b"one")
    )
    assert one == again != other
    assert Path(one).is_dir()
    assert "trt_cuda_graph_enable" not in tensorrt_options(bundle, b"one")  # one recording for all shapes would answer


def test_where_nothing_can_be_kept_engines_are_built_anew(
    split_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert "trt_engine_cache_path" not in tensorrt_options(Bundle.open(split_bundle), b"one")


def test_recorded_runs_are_all_made_by_one_thread(split_bundle: Path) -> None:
    bundle = Bundle.open(split_bundle)
    info = bundle.manifest.graphs["click"]
    session = OrtBackend(threads=1)._session("click", bundle.graphs["click"], ["CPUExecutionProvider"])
    threads: list[threading.Thread] = []

    class Watched:
        io_binding = session.io_binding

        def run_with_iobinding(self, *arguments: object) -> None:
            threads.append(threading.current_thread())
            session.run_with_iobinding(*arguments)

    program = OrtProgram("click", Watched(), info, "cpu", record=True)
    arrays = {t.name: np.zeros((1, *t.shape[1:]), t.dtype) for t in (*info.inputs, *info.outputs)}  # type: ignore[arg-type]
    buffers = {name: Buffer(a.ctypes.data, a.shape, a.dtype.name) for name, a in arrays.items()}
    with ThreadPoolExecutor(4) as callers:
        list(callers.map(lambda _: program.run(buffers), range(12)))
        assert callers._threads.isdisjoint(threads)
    program.close()
    assert len(threads) == 12
    assert len(set(threads)) == 1
    assert threading.current_thread() not in threads


class Runtime:
    """NVIDIA's bindings, as far as recording looks at them; `calls` in their order."""

    cudaStreamCaptureMode = SimpleNamespace(cudaStreamCaptureModeRelaxed=2)  # noqa: N815
    cudaError_t = SimpleNamespace(cudaSuccess=0, cudaErrorMemoryAllocation=2)  # noqa: N815

    def __init__(self, failing: str = "") -> None:
        self.calls: list[str] = []
        self._failing = failing

    def cudaGetErrorString(self, status: int) -> tuple[int, bytes]:  # noqa: N802
        return 0, b"invalid"

    def __getattr__(self, name: str) -> object:
        def call(*arguments: object) -> tuple[int, ...]:
            self.calls.append(name)
            return (1,) if name == self._failing else (0, 5)

        return call


def recording(failing: str = "") -> tuple[CudaMemory, Runtime]:
    memory, runtime = Stream(), Runtime(failing)
    memory._cuda, memory._recordings, memory._host, memory._device = runtime, [], {}, []
    return memory, runtime


def test_a_recording_that_fails_ends_and_tells_why() -> None:
    def work() -> None:
        raise RuntimeError("not capturable")

    for failing in ("", "cudaStreamEndCapture"):
        memory, runtime = recording(failing)
        with pytest.raises(RuntimeError, match="not capturable"):
            memory.record(work)
        assert "cudaStreamEndCapture" in runtime.calls
    memory, runtime = recording("cudaGraphInstantiate")
    with pytest.raises(BackendError, match="cudaGraphInstantiate: invalid"):
        memory.record(lambda: None)
    assert runtime.calls[-1] == "cudaGraphDestroy"


def test_recordings_are_freed_with_the_memory() -> None:
    memory, runtime = recording()
    memory.record(lambda: None)
    memory.record(lambda: None)
    CudaMemory.close(memory)
    assert runtime.calls.count("cudaGraphDestroy") == runtime.calls.count("cudaGraphExecDestroy") == 2


def test_what_a_failed_gpu_does_not_free_keeps_nothing_else_from_being_freed(caplog: pytest.LogCaptureFixture) -> None:
    memory, runtime = recording("cudaGraphExecDestroy")
    memory.record(lambda: None)
    memory._device = [1, 2]
    CudaMemory.close(memory)
    assert runtime.calls.count("cudaFree") == 2
    assert runtime.calls[-1] == "cudaStreamDestroy"
    assert caplog.messages == ["cudaGraphExecDestroy: invalid"]
