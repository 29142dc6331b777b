"""ONNX Runtime on a GPU, by its CUDA or TensorRT provider: nothing is copied that need not be."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from iog.backends.base import Graph
from iog.backends.cache import cache_directory
from iog.backends.cuda import RECORDING, CudaMemory
from iog.backends.device import MOST, Buffer, Memory, adapted, on_device, shapes
from iog.backends.ort import PROVIDERS, OrtBackend, failure
from iog.backends.surgery import to_half
from iog.bundle import Bundle, GraphInfo
from iog.errors import BackendError, BackendUnavailable

logger = logging.getLogger(__name__)

RECORDED = 3  # runs of one shape, after which it has surely been recorded


class OrtDeviceBackend(OrtBackend):
    """Opens bundles with features kept on the device; heads that wait run as one batch.

    budget: bytes of device memory for each bundle's features. memory: makes the memory of a bundle's graphs.
    Engines that the TensorRT provider builds, which takes minutes, are kept in `cache_directory("tensorrt", ...)`.
    """

    heads = MOST

    def __init__(
        self,
        device: str = "cuda",
        threads: int = 0,
        *,
        budget: int,
        memory: Callable[[], Memory] = CudaMemory,
    ) -> None:
        super().__init__(device, threads)
        self._device = device
        self._budget = budget
        self._memory = memory

    def load(self, bundle: Bundle) -> Mapping[str, Graph]:
        """All graphs of a bundle; raises BackendError, OutOfMemory."""
        graphs, precision = prepared(bundle), bundle.manifest.precision
        memory = self._memory()
        programs = (
            (name, self._program(name, model, info, memory, precision)) for name, (model, info) in graphs.items()
        )
        return on_device(programs, memory, self._budget)

    def _program(self, name: str, model: bytes, info: GraphInfo, memory: Memory, precision: str) -> OrtProgram:
        if not isinstance(memory, CudaMemory):
            return OrtProgram(name, self._session(name, model, [self._provider]), info, "cpu")

        def program(record: bool) -> OrtProgram:
            providers = self._providers(name, model, info, memory, precision=precision, record=record)
            return OrtProgram(name, self._session(name, model, providers), info, "cuda", record=record)

        if self._device == "cuda":  # NB: the TensorRT provider has one recording, for all shapes
            try:
                return program(record=True)
            except BackendUnavailable:
                raise
            except BackendError as e:
                logger.warning("graph %r runs without a CUDA graph, every click somewhat slower: %s", name, e)
        return program(record=False)

    def _providers(
        self, name: str, model: bytes, info: GraphInfo, memory: CudaMemory, *, precision: str, record: bool
    ) -> list[Any]:
        stream = {"user_compute_stream": str(memory.stream)}
        cuda = {
            **stream,
            "use_tf32": str(int(precision != "fp32")),
            "enable_cuda_graph": str(int(record)),
            "cudnn_conv_algo_search": "HEURISTIC",
            "prefer_nhwc": str(int(precision == "fp16")),
        }
        if self._device == "cuda":
            return [(self._provider, cuda)]
        options = dict(stream)
        # NB: the provider names engines by the names in a graph, not by its weights: each graph has its own directory.
        if cache := cache_directory("tensorrt", hashlib.sha256(model).hexdigest()[:32]):
            for kind in ("engine", "timing"):
                options |= {f"trt_{kind}_cache_enable": "True", f"trt_{kind}_cache_path": str(cache)}
        for i, which in enumerate(("min", "opt", "max")):
            profile = (f"{t}:{'x'.join(map(str, ranges[i]))}" for t, ranges in shapes(name, info).items())
            options[f"trt_profile_{which}_shapes"] = ",".join(profile)
        return [(self._provider, options), (PROVIDERS["cuda"], {**cuda, "enable_cuda_graph": "0"})]


def prepared(bundle: Bundle) -> dict[str, tuple[bytes, GraphInfo]]:
    """The bundle's graphs as `adapted` gives them; those of an fp16 bundle compute in halves."""
    if bundle.manifest.precision == "fp16":  # before they are adapted: the slots of an arena are cast, not all of it
        halves = {}
        for name, info in bundle.manifest.graphs.items():
            floats = [t.name for t in (*info.inputs, *info.outputs) if t.dtype == "float32"]
            halves[name] = to_half(bundle.graphs[name], floats)
        bundle = replace(bundle, graphs=halves)
    return adapted(bundle)


@dataclass(slots=True)
class _Known:
    """What is bound, the id of its recording, and how often it ran to its end."""

    binding: Any
    recording: int
    runs: int = 0


class OrtProgram:
    """A session that reads and writes device memory where it lies.

    record: the session was opened to record each shape's run as a CUDA graph and to repeat it. Then one thread makes
        all runs: the provider keeps recordings by thread.
    """

    def __init__(self, name: str, session: Any, info: GraphInfo, device: str, *, record: bool = False) -> None:
        from onnxruntime import RunOptions

        self.info = info
        self._name = name
        self._session = session
        self._device = device
        self._record = record
        self._known: dict[tuple[Buffer, ...], _Known] = {}  # by the buffers
        self._new_options = RunOptions
        self._thread = ThreadPoolExecutor(1, f"iog-{name}") if record else None

    def run(self, tensors: Mapping[str, Buffer]) -> None:
        """Compute outputs in place from inputs in place, and wait for it."""
        if self._thread is None:
            self._run(tensors)
        else:
            self._thread.submit(self._run, tensors).result()

    def _run(self, tensors: Mapping[str, Buffer]) -> None:
        key = tuple(tensors[t.name] for t in (*self.info.inputs, *self.info.outputs))
        try:
            known = self._known.get(key)
            if known is None:
                known = self._known[key] = _Known(self._bound(tensors), len(self._known) + 1)
            options = self._new_options()
            if self._record:
                options.add_run_config_entry("gpu_graph_id", str(known.recording))
            with RECORDING if self._record and known.runs < RECORDED else nullcontext():
                self._session.run_with_iobinding(known.binding, options)
            known.runs += 1
        except Exception as e:
            raise failure(self._name, e) from e

    def _bound(self, tensors: Mapping[str, Buffer]) -> Any:
        binding = self._session.io_binding()
        for declared, bind in ((self.info.inputs, binding.bind_input), (self.info.outputs, binding.bind_output)):
            for t in declared:
                at = tensors[t.name]
                bind(t.name, self._device, 0, np.dtype(at.dtype).type, at.shape, at.address)
        return binding

    def close(self) -> None:
        """Drop the session."""
        if self._thread is not None:
            self._thread.shutdown()
        self._known.clear()
        self._session = None
