"""Which engines are run, and what runs where none fits. That they run is proved on a GPU."""

import logging
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from iog import Predictor, Prompt
from iog.arrays import UInt8Array
from iog.backends import open_backend, trt
from iog.backends.device import Buffer
from iog.backends.trt import TrtBackend, choose
from iog.bundle import Bundle, EngineInfo
from iog.errors import BackendUnavailable

FILE = {"file": "engines/x/head.engine", "sha256": "0" * 64}


def engine(api: str, version: str, gpu: str) -> EngineInfo:
    fields = {"api": api, "version": version, "gpu": gpu, "precision": "fp16", "graphs": {"head": FILE}}
    return EngineInfo.model_validate(fields)


OLD = engine("tensorrt", "10.9.0", "sm90")
PORTABLE = engine("tensorrt_rtx", "1.7.1.116", "sm80+")
TURING = engine("tensorrt_rtx", "1.7.1.116", "sm75")


@pytest.mark.parametrize(
    ("engines", "versions", "gpu", "expected"),
    [
        ([PORTABLE], {"tensorrt_rtx": "1.7.1.116"}, "sm90", PORTABLE),
        ([TURING, PORTABLE], {"tensorrt_rtx": "1.7.1.116"}, "sm120", PORTABLE),
        ([TURING, PORTABLE], {"tensorrt_rtx": "1.7.1.116"}, "sm75", TURING),
        ([PORTABLE, OLD], {"tensorrt": "10.9.0", "tensorrt_rtx": "1.7.1.116"}, "sm90", OLD),
        ([OLD, PORTABLE], {"tensorrt": "11.4.0", "tensorrt_rtx": "1.7.1.116"}, "sm90", PORTABLE),
        ([], {"tensorrt": "10.9.0"}, "sm90", "the bundle has none: make them with `iog export --target tensorrt`"),
        ([OLD], {"tensorrt": "11.4.0"}, "sm90", "built by tensorrt 10.9.0, here is 11.4.0"),
        ([OLD], {"tensorrt": "10.9.0"}, "sm89", "built by tensorrt for sm90, this GPU is sm89"),
        ([PORTABLE], {"tensorrt_rtx": "1.7.1.116"}, "sm75", "built by tensorrt_rtx for sm80+, this GPU is sm75"),
        ([OLD], {"tensorrt_rtx": "1.7.1.116"}, "sm90", "built by tensorrt, which is not installed"),
    ],
)
def test_engines_run_where_api_version_and_gpu_are_those_they_were_built_for(
    engines: list[EngineInfo], versions: dict[str, str], gpu: str, expected: EngineInfo | str
) -> None:
    chosen, reason = choose(engines, versions, gpu)
    assert (chosen or reason) == expected


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """TensorRT and a GPU, as far as choosing engines goes; ONNX Runtime for the CPU only."""
    monkeypatch.setattr("iog.backends.trt.installed_apis", lambda: {"tensorrt": SimpleNamespace(__version__="10.9.0")})
    gpu = SimpleNamespace(compute_capability="sm90", close=lambda: None)
    monkeypatch.setattr("iog.backends.trt.CudaMemory", lambda: gpu)
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["CPUExecutionProvider"])


@pytest.mark.usefixtures("machine")
def test_where_no_engine_fits_the_graphs_run_on_onnx_runtime_and_the_log_says_so(
    split_bundle: Path, photo: UInt8Array, prompt: Prompt, caplog: pytest.LogCaptureFixture
) -> None:
    bundle = Bundle.open(split_bundle)
    with (
        caplog.at_level(logging.WARNING, "iog"),
        Predictor(bundle, TrtBackend(budget=1 << 20)) as predictor,
        Predictor(bundle, open_backend("ort")) as expected,
    ):
        clicked = prompt.with_click(100, 100, positive=False)
        assert np.array_equal(predictor.segment(photo, clicked).mask, expected.segment(photo, clicked).mask)
    said = " ".join(caplog.messages)
    assert "ONNX Runtime has no CUDAExecutionProvider here" in said
    assert (
        "'small-split' runs its ONNX graphs on the CPU, far slower: no TensorRT engines for this GPU (the bundle"
        in said
    )


@pytest.mark.usefixtures("machine")
def test_a_fallback_that_was_not_asked_for_is_an_error(split_bundle: Path) -> None:
    with pytest.raises(BackendUnavailable, match="no TensorRT engines for this GPU: the bundle has none"):
        Predictor(Bundle.open(split_bundle), TrtBackend(budget=1 << 20, fall_back=False))


class Context:
    """Of an engine, as far as a program uses it; `history` is what it was told, in order."""

    def __init__(self) -> None:
        self.history: list[tuple[object, ...]] = []

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.history.append(("shape", shape))
        return True

    def set_tensor_address(self, name: str, address: int) -> None:
        self.history.append(("address", address))

    def set_device_memory(self, address: int, size: int) -> None:
        self.history.append(("scratch", address, size))

    def execute_async_v3(self, stream: int) -> bool:
        self.history.append(("run",))
        return True


class Recorder:
    """Device memory that records and replays by name."""

    stream = 0

    def __init__(self) -> None:
        self.replayed: list[str] = []
        self.recorded = 0

    def allocate(self, nbytes: int) -> int:
        return 0x1000

    def wait(self) -> None:
        pass

    def record(self, work: Callable[[], None]) -> str:
        work()
        self.recorded += 1
        return f"recording {self.recorded}"

    def replay(self, recorded: str) -> None:
        self.replayed.append(recorded)


def test_each_recorded_shape_has_a_context_that_nothing_changes_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    contexts: list[Context] = []

    class Engine:
        device_memory_size_v2 = 512

        def create_execution_context(self, strategy: str) -> Context:
            assert strategy == "user managed"
            contexts.append(Context())
            return contexts[-1]

    info = Bundle.open().manifest.graphs["click"]
    api = SimpleNamespace(
        Runtime=lambda log: SimpleNamespace(deserialize_cuda_engine=lambda data: Engine()),
        ExecutionContextAllocationStrategy=SimpleNamespace(USER_MANAGED="user managed"),
    )
    monkeypatch.setattr(trt, "logger_of", lambda api: SimpleNamespace(last=""))
    monkeypatch.setattr(trt, "engine_info", lambda *_: info)
    memory = Recorder()
    program = trt.TrtProgram("click", api, b"", memory)  # type: ignore[arg-type]

    def run(rows: int) -> None:
        tensors = (*info.inputs, *info.outputs)
        shape = {t.name: (rows, *(d for d in t.shape[1:] if isinstance(d, int))) for t in tensors}
        program.run({t.name: Buffer(100 * rows + i, shape[t.name], t.dtype) for i, t in enumerate(tensors)})

    for rows in (8, 1, 8, 1, 1):
        run(rows)
    assert memory.replayed == ["recording 1", "recording 2", "recording 2"]
    assert len(contexts) == 2
    for context, rows in zip(contexts, (8, 1), strict=True):
        kinds = [kind for kind, *_ in context.history]
        assert kinds == ["scratch", *["shape"] * 2, *["address"] * 3, "run", "run"]
        assert context.history[0] == ("scratch", 0x1000, 512)
        assert {shape[0] for kind, *(shape,) in context.history[1:3]} == {rows}  # type: ignore[index]
    program.close()
