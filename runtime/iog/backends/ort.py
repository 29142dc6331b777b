"""ONNX Runtime on the CPU; `iog.backends.ort_cuda` runs it on a GPU."""

from __future__ import annotations

import contextlib
import io
import platform
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from iog.arrays import Array
from iog.backends import pages
from iog.backends.base import Graph
from iog.bundle import GraphInfo, TensorInfo
from iog.cores import engine_threads
from iog.errors import BackendError, BackendUnavailable, OutOfMemory

PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
}
DTYPES = {
    "tensor(uint8)": "uint8",
    "tensor(int32)": "int32",
    "tensor(int64)": "int64",
    "tensor(float16)": "float16",
    "tensor(float)": "float32",
}

OUT_OF_MEMORY = ("Failed to allocate memory", "out of memory", "OutOfMemory", "bad_alloc")  # no engine has an exception


class OrtBackend:
    """Opens graphs as ONNX Runtime sessions."""

    name = "ort"
    heads = 1  # a batch takes as long as its members one by one

    def __init__(self, device: str = "cpu", threads: int = 0) -> None:
        try:
            import onnxruntime
        except ImportError as e:
            raise BackendUnavailable(
                "ONNX Runtime is not installed; install iog-runtime[cpu], or iog-runtime[gpu] for CUDA"
            ) from e
        if device not in PROVIDERS:
            raise BackendUnavailable(f"unknown device {device!r}; expected one of: {', '.join(PROVIDERS)}")
        available = onnxruntime.get_available_providers()
        if PROVIDERS[device] not in available:
            raise BackendUnavailable(
                f"ONNX Runtime has no {PROVIDERS[device]} here (it has {', '.join(available)}); "
                "install iog-runtime[gpu] in place of [cpu], or use device cpu"
            )
        self._missing = "" if device == "cpu" else _preloaded()
        self._ort = onnxruntime
        self._provider = PROVIDERS[device]
        self._threads = threads

    def open(self, name: str, model: bytes, info: GraphInfo) -> Graph:
        """Build a session; raises BackendError if it fails or its inputs and outputs are not the declared ones."""
        session = self._session(name, model, [self._provider])
        for declared, found in ((info.inputs, session.get_inputs()), (info.outputs, session.get_outputs())):
            check(name, declared, [(t.name, DTYPES.get(t.type, t.type), tuple(t.shape)) for t in found])
        return OrtGraph(name, session, info)

    def _session(self, name: str, model: bytes, providers: list[Any]) -> Any:
        options = self._ort.SessionOptions()
        options.intra_op_num_threads = engine_threads(self._threads)
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        # graphs take turns on the cores: one that spins after its run slows the next one down
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        if self._provider == PROVIDERS["cpu"]:  # see share_arena; without it every session has its own
            options.add_session_config_entry("session.use_env_allocators", "1")
        if _int8_products_saturate():  # then weights become uint8, which are exact, and three times as slow
            options.add_session_config_entry("session.x64quantprecision", "1")
        try:
            session = self._ort.InferenceSession(model, options, providers=providers)
        except Exception as e:  # onnxruntime's exceptions have no common base
            raise BackendError(f"graph {name!r} cannot be opened by ONNX Runtime: {e}") from e
        session._model_bytes = None  # which it would keep for ever, only to open itself again with other providers
        if self._provider not in session.get_providers():  # where it fails to start, the session silently uses the CPU
            raise BackendUnavailable(
                f"ONNX Runtime has {self._provider}, but it does not start: check the driver{self._missing}, "
                "or use device cpu"
            )
        return session


class OrtGraph:
    """An ONNX Runtime session. An encoder's writes its outputs where they will be kept; others' are on the heap."""

    def __init__(self, name: str, session: Any, info: GraphInfo) -> None:
        self.info = info
        self._name = name
        self._session = session
        self._pages = pages.Ahead(info.outputs) if name == "encoder" else None
        self._outputs = [t.name for t in info.outputs]

    def run(self, inputs: Mapping[str, Array]) -> list[Array]:
        """All outputs, in the declared order."""
        session = self._session
        if session is None:
            raise BackendError(f"graph {self._name!r} is closed; open the bundle again")
        try:
            outputs: list[Array] = (
                session.run(self._outputs, dict(inputs))
                if self._pages is None
                else self._bound(session, self._pages, inputs)
            )
        except OutOfMemory:
            raise
        except Exception as e:
            raise failure(self._name, e) from e
        return outputs

    def _bound(self, session: Any, kept: pages.Ahead, inputs: Mapping[str, Array]) -> list[Array]:
        binding = session.io_binding()
        for name, value in inputs.items():
            binding.bind_cpu_input(name, np.ascontiguousarray(value))
        with kept.outputs(len(next(iter(inputs.values())))) as outputs:
            for t, array in zip(self.info.outputs, outputs, strict=True):
                binding.bind_output(t.name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
            session.run_with_iobinding(binding)
        return outputs

    def close(self) -> None:
        """Drop the session; requests that are running finish first."""
        self._session = None
        if self._pages is not None:
            self._pages.close()


def share_arena() -> None:
    """One arena for the values inside of all sessions of this process that are opened from now on.

    It is no larger than they need, and is never given back. By default each session has its own, which doubles when it
    is too small: a fifth more memory for a server, whose graphs take turns.
    """
    import onnxruntime as ort

    memory = ort.OrtMemoryInfo("Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT)
    same_as_requested = ort.OrtArenaCfg({"arena_extend_strategy": 1})
    with contextlib.suppress(RuntimeError):  # one is registered already: any is as good
        ort.create_and_register_allocator(memory, same_as_requested)


@cache
def _preloaded() -> str:
    """Load CUDA's and cuDNN's libraries from NVIDIA's packages, where ONNX Runtime does not look by itself.

    Returns, for the middle of a message, what it said of those that it did not find.
    """
    import onnxruntime

    if not hasattr(onnxruntime, "preload_dlls"):  # before 1.21
        return ""
    with contextlib.redirect_stdout(io.StringIO()) as told:
        onnxruntime.preload_dlls()
    said = " ".join(told.getvalue().split())
    return f" ({said})" if said else ""


@cache
def _int8_products_saturate() -> bool:
    """Whether this is an x86 processor without VNNI, as far as the system tells."""
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return False
    try:
        return "vnni" not in Path("/proc/cpuinfo").read_text()  # avx512_vnni, avx_vnni
    except OSError:
        return True


def failure(name: str, error: Exception) -> BackendError:
    """What a failed run of a graph is to callers."""
    full = isinstance(error, MemoryError) or any(sign in str(error) for sign in OUT_OF_MEMORY)
    kind = OutOfMemory if full else BackendError
    return kind(f"graph {name!r} failed: {error}")


def check(graph: str, declared: Sequence[TensorInfo], found: Sequence[tuple[str, str, Sequence[Any]]]) -> None:
    """Raises BackendError if what an engine found (names, dtypes, shapes) is not what the manifest declares."""

    def text(name: str, dtype: str, shape: Any) -> str:
        return f"{name}: {dtype} [{', '.join(str(d) if isinstance(d, int) else '?' for d in shape)}]"

    want = {text(t.name, t.dtype, t.shape) for t in declared}
    have = {text(*tensor) for tensor in found}
    if want != have:
        raise BackendError(
            f"graph {graph!r} is not what the manifest declares: it has {sorted(have - want)}, "
            f"the manifest says {sorted(want - have)}"
        )
