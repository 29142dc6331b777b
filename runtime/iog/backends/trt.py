"""TensorRT engines that a bundle has for this GPU; its ONNX graphs on ONNX Runtime where it has none."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any

from iog.backends.base import Backend, Graph
from iog.backends.cuda import CudaMemory
from iog.backends.device import MOST, Buffer, on_device
from iog.backends.ort import OrtBackend, failure
from iog.backends.ort_cuda import OrtDeviceBackend
from iog.backends.surgery import POINTS
from iog.bundle import Bundle, EngineInfo, GraphInfo
from iog.errors import BackendError, BackendUnavailable

logger = logging.getLogger(__name__)

APIS = ("tensorrt", "tensorrt_rtx")  # modules of one interface, in the order of preference
PORTABLE_FROM = 80  # the compute capability from which on TensorRT-RTX engines fit every GPU


def installed_apis() -> dict[str, Any]:
    """TensorRT's modules by name. Raises BackendUnavailable if there is none."""
    found = {}
    for name in APIS:
        try:
            found[name] = importlib.import_module(name)
        except ImportError as e:
            logger.debug("%s cannot be imported: %s", name, e)
    if not found:
        raise BackendUnavailable("neither tensorrt nor tensorrt_rtx is installed; install iog-runtime[trt]")
    return found


def choose(engines: Sequence[EngineInfo], versions: Mapping[str, str], gpu: str) -> tuple[EngineInfo | None, str]:
    """The engines that fit, or None and why none does.

    versions: of the installed APIs, by name; gpu: compute capability, "sm90".
    """
    reasons = []
    for api, version in versions.items():
        for engine in (e for e in engines if e.api == api):
            portable = engine.gpu.endswith("+") and int(gpu[2:]) >= int(engine.gpu[2:-1])
            if engine.version != version:
                reasons.append(f"built by {api} {engine.version}, here is {version}")
            elif engine.gpu != gpu and not portable:
                reasons.append(f"built by {api} for {engine.gpu}, this GPU is {gpu}")
            else:
                return engine, ""
    reasons += [f"built by {e.api}, which is not installed" for e in engines if e.api not in versions]
    return None, "; ".join(reasons) or "the bundle has none: make them with `iog export --target tensorrt`"


class TrtBackend:
    """Runs engines with features kept on the device; heads that wait run as one batch.

    budget: bytes of device memory for each bundle's features. fall_back: run the ONNX graphs of a bundle that has no
    engines for this GPU, and say so; otherwise such a bundle is refused.
    Raises BackendUnavailable without TensorRT or a GPU.
    """

    name = "trt"

    def __init__(self, *, budget: int, fall_back: bool = True) -> None:
        self.heads = MOST
        self._apis = installed_apis()
        self._budget = budget
        self._fall_back = fall_back
        probe = CudaMemory()
        self._gpu = probe.compute_capability
        probe.close()

    def open(self, name: str, model: bytes, info: GraphInfo) -> Graph:
        """One ONNX graph, on ONNX Runtime: engines belong to bundles."""
        return self._fallback().open(name, model, info)

    def load(self, bundle: Bundle) -> Mapping[str, Graph]:
        """All graphs of a bundle; raises BackendError."""
        self.heads = MOST
        versions = {name: api.__version__ for name, api in self._apis.items()}
        engine, reason = choose(bundle.manifest.engines, versions, self._gpu)
        if engine is not None:
            memory = CudaMemory()
            try:
                return on_device(self._programs(bundle, engine, memory), memory, self._budget)
            except BackendError as e:
                if not self._fall_back:  # there are engines for this GPU, and they do not work
                    raise
                reason = str(e)
        if not self._fall_back:
            raise BackendUnavailable(f"no TensorRT engines for this GPU: {reason}")
        fallback = self._fallback()
        on = "ONNX Runtime's CUDA provider" if isinstance(fallback, OrtDeviceBackend) else "the CPU, far slower"
        logger.warning(
            "model %r runs its ONNX graphs on %s: no TensorRT engines for this GPU (%s)",
            bundle.manifest.name,
            on,
            reason,
        )
        self.heads = fallback.heads
        if isinstance(fallback, OrtDeviceBackend):
            return fallback.load(bundle)
        return {name: fallback.open(name, bundle.graphs[name], info) for name, info in bundle.manifest.graphs.items()}

    def _programs(self, bundle: Bundle, engine: EngineInfo, memory: CudaMemory) -> Iterator[tuple[str, TrtProgram]]:
        api = self._apis[engine.api]
        for name, stored in engine.graphs.items():
            yield name, TrtProgram(name, api, bundle.engine(stored), memory)

    def _fallback(self) -> Backend:
        try:
            return OrtDeviceBackend("cuda", budget=self._budget)
        except BackendUnavailable as e:
            logger.warning("%s", e)
            return OrtBackend()


class TrtProgram:
    """An engine. Each shape's run is repeated as a CUDA graph.

    TensorRT asks for a context of its own for each of them: another shape changes what the recorded work reads. They
    share their scratch memory, as one of them works at a time. TensorRT-RTX records by itself, whatever the shape.
    """

    def __init__(self, name: str, api: Any, engine: bytes, memory: CudaMemory) -> None:
        self._name = name
        self._memory = memory
        self._log = logger_of(api)
        self._runtime = api.Runtime(self._log)
        self._engine = self._runtime.deserialize_cuda_engine(engine)
        if self._engine is None:
            raise BackendError(f"engine of graph {name!r} cannot be opened: {self._log.last}")
        self._record = not hasattr(api, "CudaGraphStrategy")
        self._only: Any = None
        self._contexts: dict[tuple[Buffer, ...], Any] = {}
        self._recorded: dict[tuple[Buffer, ...], Any] = {}
        if self._record:
            self._scratch = memory.allocate(max(self._engine.device_memory_size_v2, 1))
            self._shared = api.ExecutionContextAllocationStrategy.USER_MANAGED
        else:
            config = self._engine.create_runtime_config()
            config.cuda_graph_strategy = api.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
            self._only = self._made(config)
        self.info = engine_info(api, self._engine, f"{name}.engine")

    def run(self, tensors: Mapping[str, Buffer]) -> None:
        """Compute outputs in place from inputs in place, and wait for it."""
        key = tuple(tensors[t.name] for t in (*self.info.inputs, *self.info.outputs))
        try:
            if key in self._recorded:
                self._memory.replay(self._recorded[key])
            else:
                context = self._context(key)
                self._bind(context, tensors)
                self._execute(context)
                self._memory.wait()
                if self._record:
                    self._keep(key, context)
            self._memory.wait()
        except RuntimeError as e:
            raise failure(self._name, e) from e

    def close(self) -> None:
        """Free the engine's memory."""
        self._recorded.clear()
        self._contexts.clear()
        self._only = self._engine = None

    def _context(self, key: tuple[Buffer, ...]) -> Any:
        if self._only is not None:
            return self._only
        if key not in self._contexts:
            self._contexts[key] = context = self._made(self._shared)
            context.set_device_memory(self._scratch, self._engine.device_memory_size_v2)
        return self._contexts[key]

    def _made(self, how: Any) -> Any:
        context = self._engine.create_execution_context(how)
        if context is None:
            raise failure(self._name, RuntimeError(self._log.last))
        return context

    def _keep(self, key: tuple[Buffer, ...], context: Any) -> None:
        try:
            self._recorded[key] = self._memory.record(lambda: self._execute(context))
        except (RuntimeError, BackendError) as e:
            self._record = False
            logger.warning("graph %r runs without CUDA graphs, every click somewhat slower: %s", self._name, e)

    def _bind(self, context: Any, tensors: Mapping[str, Buffer]) -> None:
        for t in self.info.inputs:
            if not context.set_input_shape(t.name, tensors[t.name].shape):
                raise RuntimeError(f"{t.name} of shape {tensors[t.name].shape}: {self._log.last}")
        for t in (*self.info.inputs, *self.info.outputs):
            context.set_tensor_address(t.name, tensors[t.name].address)

    def _execute(self, context: Any) -> None:
        if not context.execute_async_v3(self._memory.stream):
            raise RuntimeError(self._log.last)


@cache
def logger_of(api: Any) -> Any:
    """The logger for an API: warnings and errors go to Python's logging, and `last` is the latest error."""
    # NB: TensorRT keeps a bare pointer to the first logger that it gets, until the process ends.

    class Logger(api.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.last = "no reason given"

        def log(self, severity: Any, message: str) -> None:
            if severity <= api.ILogger.ERROR:
                self.last = message
            level = logging.INFO if severity <= api.ILogger.WARNING else logging.DEBUG
            logger.log(level, "%s: %s", api.__name__, message)

    return Logger()


def engine_info(api: Any, engine: Any, file: str) -> GraphInfo:
    """What an engine takes and gives."""
    dtypes = {"UINT8": "uint8", "INT32": "int32", "INT64": "int64", "HALF": "float16", "FLOAT": "float32"}
    tensors: dict[str, list[dict[str, Any]]] = {"inputs": [], "outputs": []}
    for name in map(engine.get_tensor_name, range(engine.num_io_tensors)):
        _, *shape = engine.get_tensor_shape(name)
        which = "inputs" if engine.get_tensor_mode(name) == api.TensorIOMode.INPUT else "outputs"
        tensors[which].append(
            {
                "name": name,
                "dtype": dtypes[engine.get_tensor_dtype(name).name],
                "shape": POINTS.shape if name == POINTS.name else ("batch", *shape),
            }
        )
    return GraphInfo.model_validate({"file": file, "sha256": "0" * 64, "macs": 0, **tensors})
